"""Results of a benchmark as text."""

from typing import Any

from isoflop.text import aligned

_HEADER = ("contestant", "seconds", "median", "spread", "÷ dense", "")


def format_result(result: dict[str, Any]) -> str:
    """Return the figures of one sparsity, as `run_bench` returned them, as aligned text."""
    lines = [_title(result["workload"]), *_table(result)]
    for title, reasons in (("out", result["failed"]), ("not here", result["skipped"])):
        lines += [f"{title}: {name} ({reason})" for name, reason in reasons.items()]
    return "\n".join(lines)


def format_machine(machine: dict[str, Any]) -> str:
    """Return the description of the machine in one line."""
    parts = [
        machine["cpu"],
        f"{machine['cores']} cores",
        f"{machine['threads']} threads",
        f"PyTorch {machine['torch']} ({machine['torch_instruction_set']})",
    ]
    if machine["load_average"] is not None:
        parts.append(f"load average {machine['load_average']:.1f}")
    return ", ".join(parts)


def _title(workload: dict[str, Any]) -> str:
    hidden = ("kind", "sparsity")
    details = ", ".join(
        f"{name} {'×'.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in workload.items()
        if name not in hidden
    )
    return f"{workload['kind']} at {100 * workload['sparsity']:g} % sparsity ({details})"


def _table(result: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [_HEADER]
    for name, seconds in sorted(result["seconds"].items(), key=lambda item: item[1]):
        if name == "dense":
            continue
        ratio = result["ratio_to_dense"].get(name)
        note = "dense at its best" if name == result["dense_is"] else result["notes"].get(name, "")
        rows.append(
            (
                name,
                f"{seconds:.4g}",
                f"{result['median'][name]:.4g}",
                f"{100 * result['spread'][name]:.1f} %",
                "" if ratio is None else f"{ratio:.2f}",
                note,
            )
        )
    return aligned(rows, left=(0, -1))
