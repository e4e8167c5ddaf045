"""What a survey found, for the terminal and as Markdown."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

SLOWEST = 5

Result = dict[str, Any]


def progress_line(result: Result, done: int, size: int) -> str:
    """Return the line of one model while the survey runs."""
    parts = [f"[{done:{len(str(size))}}/{size}] {result['spec']}: {result['status']}"]
    if "seconds" in result:
        parts.append(f"{result['seconds']:.1f} s")
    if "ratio" in result:
        parts.append(f"×{result['ratio']:.2f}")
    return ", ".join(parts) + (f" ({result['cause']})" if "cause" in result else "")


def text_report(outcome: dict[str, Any]) -> str:
    """Return rates, failures by cause and the slowest models."""
    found = outcome["results"]
    lines = [_versions(outcome), ""]
    for source, counts in _counts(found).items():
        lines.append(f"{source}: {_rate(counts)}")
    for status in ("fail", "not built"):
        for cause, names in _by_cause(found, status):
            lines += ["", f"{status}, {len(names)}: {cause}", f"  {', '.join(names)}"]
    timed = sorted((r for r in found if "seconds" in r), key=lambda r: -r["seconds"])
    if timed:
        slow = ", ".join(f"{r['spec']} {r['seconds']:.1f} s" for r in timed[:SLOWEST])
        lines += ["", f"slowest transforms: {slow}"]
    return "\n".join(lines)


def markdown_report(outcome: dict[str, Any], command: str) -> str:
    """Return the tables for the documentation."""
    found = outcome["results"]
    candidates = outcome["sample"].get("candidates", {})
    lines = [
        "# Models",
        "",
        f"Made by `{command}` with {_versions(outcome)}.",
        "",
        "Models of timm and torchvision are classification models, those of transformers text "
        "architectures at a tiny size, without dense ends. Half of a sample is from timm, a fifth "
        "from torchvision and the rest from transformers, within which every model is as likely as "
        "any other; one that cannot be built is replaced by the next.",
        "",
        "To pass, a model must keep the shapes of its outputs, cost what the dense one does to "
        "within one weight, and have every hidden width grown; where it is small, it must also run "
        "and train, masked.",
        "",
        *_table(
            ("source", "models", "checked", "pass", "fail", "rate", "not built"),
            [
                (
                    source,
                    str(candidates.get(source, "")),
                    str(counts["pass"] + counts["fail"]),
                    str(counts["pass"]),
                    str(counts["fail"]),
                    _percent(counts),
                    str(counts["not built"]),
                )
                for source, counts in _counts(found).items()
            ],
        ),
    ]
    failures = _by_cause(found, "fail")
    if failures:
        lines += ["", "## Failures by cause", ""]
        lines += _table(
            ("models", "cause", "which"),
            [(str(len(names)), cause, ", ".join(names)) for cause, names in failures],
        )
    missing = _by_cause(found, "not built")
    if missing:
        lines += ["", "## Not built", ""]
        lines += _table(
            ("models", "reason", "which"),
            [(str(len(names)), cause, ", ".join(names)) for cause, names in missing],
        )
    for source in dict.fromkeys(_source(r) for r in found):
        lines += ["", f"## {source}", ""]
        lines += _table(
            ("model", "status", "dense MACs", "× unmasked", "gap", "seconds", "note"),
            [_row(r) for r in found if _source(r) == source and r["status"] != "not built"],
        )
    return "\n".join(lines) + "\n"


def _row(result: Result) -> tuple[str, ...]:
    return (
        result["spec"].partition(":")[2],
        result["status"],
        f"{result['dense_macs']:,}" if "dense_macs" in result else "",
        f"{result['ratio']:.3f}" if "ratio" in result else "",
        f"{result['gap']:+.1e}" if "gap" in result else "",
        f"{result['seconds']:.1f}" if "seconds" in result else "",
        _note(result),
    )


def _note(result: Result) -> str:
    if "cause" in result:
        return result["cause"]
    return f"not run: {result['skipped']}" if "skipped" in result else "run and trained"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").split())


def _versions(outcome: dict[str, Any]) -> str:
    shown = {k: v for k, v in outcome["versions"].items() if k != "source"}
    settings = outcome["settings"]
    return (
        ", ".join(f"{name} {version}" for name, version in shown.items())
        + f"; {settings['transform']} at sparsity {settings['config']['sparsity']}"
    )


def _source(result: Result) -> str:
    return result["spec"].partition(":")[0]


def _counts(found: list[Result]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for result in found:
        counts.setdefault(_source(result), Counter())[result["status"]] += 1
    if len(counts) > 1:
        counts["all"] = sum(counts.values(), Counter())
    return counts


def _percent(counts: Counter[str]) -> str:
    checked = counts["pass"] + counts["fail"]
    return f"{counts['pass'] / checked:.1%}" if checked else ""


def _rate(counts: Counter[str]) -> str:
    checked = counts["pass"] + counts["fail"]
    missing = f", {counts['not built']} not built" if counts["not built"] else ""
    return f"{counts['pass']} of {checked} pass ({_percent(counts) or 'none checked'}){missing}"


def _by_cause(found: list[Result], status: str) -> list[tuple[str, list[str]]]:
    causes: dict[str, list[str]] = {}
    for result in found:
        if result["status"] == status:
            causes.setdefault(result["cause"], []).append(result["spec"])
    return sorted(causes.items(), key=lambda item: (-len(item[1]), item[0]))
