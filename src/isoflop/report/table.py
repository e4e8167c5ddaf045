"""Tables from run directories."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import RunDirectoryError
from isoflop.files import read_json
from isoflop.training.rundir import RunDirectory

# What may differ between the runs of one group.
SEED_OPTIONS = ("seed", "data")

# Methods that are written otherwise than they are registered.
METHOD_NAMES: dict[str, str] = {"rigl": "RigL", "set": "SET", "dense": "Dense"}


def summary_table(runs: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Group complete runs that differ in nothing but the seed, and average each group.

    Args:
        runs: Run directories.

    Returns:
        One row per group, in order of first appearance: the options `transform`, `sparsity` and
        `method`; `label`; `runs` and `seeds`; mean and sample standard deviation over the seeds of
        the accuracy in percent (`accuracy_mean`, `accuracy_std`, None for a single run), training
        FLOPs (`training_flops`) and time (`seconds`); and the exact `macs`, `macs_ratio` to the
        dense model, `nnz` and `numel`.

    Raises:
        RunDirectoryError: A directory holds no complete run, or two runs share a seed.
    """
    groups: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for path in runs:
        run = RunDirectory(path)
        if not run.config_path.exists():
            raise RunDirectoryError(f"{path} holds no run.")
        config, summary = read_json(run.config_path), run.summary()
        if summary is None:
            raise RunDirectoryError(f"The run in {path} is not complete. Finish it with --resume.")
        key = {name: value for name, value in config.items() if name not in SEED_OPTIONS}
        groups.setdefault(json.dumps(key, sort_keys=True), []).append((config, summary))
    return [_row(members) for members in groups.values()]


def _row(members: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    config = members[0][0]
    summaries = [summary for _, summary in members]
    seeds = [summary["seed"] for summary in summaries]
    if len(set(seeds)) < len(seeds):
        raise RunDirectoryError(
            f"Two runs of {label(config)} have the same seed; they would not be independent. "
            "Give each run once."
        )
    accuracies = [summary["accuracy"] for summary in summaries]
    first = summaries[0]
    return {
        "label": label(config),
        "recipe": first["recipe"],
        "transform": config["transform"],
        "sparsity": config["sparsity"],
        "method": config["method"],
        "runs": len(members),
        "seeds": seeds,
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "macs": first["macs"],
        "dense_macs": first["dense_macs"],
        "macs_ratio": first["macs"] / first["dense_macs"],
        "nnz": first["nnz"],
        "numel": first["numel"],
        "training_flops": statistics.mean(summary["training_flops"] for summary in summaries),
        "seconds": statistics.mean(summary["seconds"] for summary in summaries),
    }


def label(config: dict[str, Any]) -> str:
    """Return a short name for the runs with this `config.json`."""
    transform, sparsity, method = config["transform"], config["sparsity"], config["method"]
    method_name = METHOD_NAMES.get(method) or str(method)
    if config.get("storage") == "compressed":
        method_name += ", compressed"
    if transform is None:
        return method_name if not sparsity else f"{method_name} {100 * sparsity:g} %"
    size = f"{100 * sparsity:g} %"
    if not sparsity and config["transform_config"].get("width"):
        size = f"k={config['transform_config']['width']:g}"
    family = transform.replace("_", " ").title()
    if transform == "low_rank":
        return f"{family} {size} {method_name}"
    if method == "dense":
        return f"Dense {family}, as large as at {size}"
    return f"Sparse {family} {size} {method_name}"


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of `summary_table` as aligned text."""
    header = ("model", "accuracy %", "MACs / dense", "nnz", "weights", "seconds", "runs")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        std = "" if row["accuracy_std"] is None else f" ± {row['accuracy_std']:.2f}"
        lines.append(
            (
                row["label"],
                f"{row['accuracy_mean']:.2f}{std}",
                f"{row['macs_ratio']:.6f}",
                f"{row['nnz']:,}",
                f"{row['numel']:,}",
                f"{row['seconds']:.1f}",
                str(row["runs"]),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
