"""Tables from run directories."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import RunDirectoryError
from isoflop.lab.report.figure import is_finite
from isoflop.lab.report.runs import Group, group_runs, load_run
from isoflop.spectral import MEASURES
from isoflop.text import aligned


def summary_table(runs: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Group complete runs that differ in nothing but the seed, and average each group.

    Args:
        runs: Run directories.

    Returns:
        One row per group, in order of first appearance: the options `transform`, `sparsity`,
        `method` and `pattern`; `label`; `runs` and `seeds`; `metric`, the measure that heads the
        results, its `unit` and `metric_label`; its mean and sample standard deviation over the
        seeds (`mean`, and `std`, None for a single run; infinite or NaN where a result is); mean
        training FLOPs (`training_flops`) and time (`seconds`); and the exact `macs`, `macs_ratio` to
        the dense model, `nnz` and `numel`.

    Raises:
        RunDirectoryError: A directory holds no complete run, or two runs share a seed.
    """
    loaded = [load_run(path) for path in runs]
    for run in loaded:
        if run.summary is None:
            raise RunDirectoryError(
                f"The run in {run.path} is not complete. Finish it with --resume."
            )
    return rows_of(group_runs(loaded))


def rows_of(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Return the rows of `summary_table`; incomplete runs are left out."""
    rows = (_row(group) for group in groups)
    return [row for row in rows if row is not None]


def _row(group: Group) -> dict[str, Any] | None:
    summaries = [run.summary for run in group.runs if run.summary is not None]
    if not summaries:
        return None
    metric = group.metric
    values = [summary[metric.name] for summary in summaries]
    first, config = summaries[0], group.config
    return {
        "label": group.label,
        "group": group.index,
        "recipe": group.task,
        "transform": config["transform"],
        "sparsity": config["sparsity"],
        "method": config["method"],
        "pattern": config.get("pattern", "unstructured"),
        "runs": len(summaries),
        "seeds": [summary["seed"] for summary in summaries],
        "metric": metric.name,
        "unit": metric.unit,
        "metric_label": metric.label,
        "mean": statistics.mean(values),
        "std": _deviation(values),
        "macs": first["macs"],
        "dense_macs": first["dense_macs"],
        "macs_ratio": first["macs"] / first["dense_macs"],
        "nnz": first["nnz"],
        "numel": first["numel"],
        "training_flops": statistics.mean(summary["training_flops"] for summary in summaries),
        "seconds": statistics.mean(summary["seconds"] for summary in summaries),
    }


def drawable(row: Mapping[str, Any]) -> bool:
    """Tell whether the result of a row of `summary_table` has a place in a figure."""
    return is_finite(row["mean"], row["std"] or 0.0, row["training_flops"])


def left_out(rows: Iterable[Mapping[str, Any]], drawn: Sequence[Mapping[str, Any]]) -> str:
    """Return what a caption must say of rows that are not drawn."""
    missing = [row["label"] for row in rows if row not in drawn]
    return f" Without a finite result: {', '.join(missing)}." if missing else ""


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return statistics.stdev(values) if is_finite(*values) else math.nan


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `summary_table` as aligned text."""
    names = " / ".join(dict.fromkeys(f"{row['metric']} {row['unit']}".strip() for row in rows))
    header = ("model", names, "MACs / dense", "nnz", "weights", "seconds", "runs")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        lines.append(
            (
                row["label"],
                result_text(row),
                f"{row['macs_ratio']:.6f}",
                f"{row['nnz']:,}",
                f"{row['numel']:,}",
                f"{row['seconds']:.1f}",
                str(row["runs"]),
            )
        )
    return "\n".join(aligned(lines))


def result_text(row: Mapping[str, Any]) -> str:
    """Return mean and deviation of a row of `summary_table`."""
    if not is_finite(row["mean"]):
        return "not finite"
    return f"{row['mean']:.2f}" + ("" if row["std"] is None else f" ± {row['std']:.2f}")


def format_spectra(measured: Mapping[str, Any]) -> str:
    """Return what `isoflop spectra` measured as aligned text: a line per layer and the network."""
    lines: list[tuple[str, ...]] = [("layer", "edges", *MEASURES, "subgraphs", "skipped")]
    for name, layer in measured["layers"].items():
        values = [_number(layer[measure]) for measure in MEASURES]
        sizes = (f"{layer['edges']:,}", *values, str(layer["subgraphs"]))
        lines.append((name, *sizes, layer["skipped"] or ""))
    network = [_number(measured["network"][measure]) for measure in MEASURES]
    lines.append(("network (mean of the layers)", "", *network, "", ""))
    return (
        "\n".join(aligned(lines, left=(0, -1)))
        + f"\nafter epoch {measured['epoch']}, step {measured['step']}; "
        f"bound {measured['bound']}; measured in {measured['seconds']:.2f} s"
    )


def _number(value: float | None) -> str:
    return f"{value:.4f}" if is_finite(value) else "–"
