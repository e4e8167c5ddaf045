"""Run directories as reports see them, and groups of runs that differ in nothing but the seed."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import PlanError, RunDirectoryError, UnknownNameError
from isoflop.files import read_json
from isoflop.plan import Plan
from isoflop.training.checkpoint import load_checkpoint
from isoflop.training.mask_history import unpack
from isoflop.training.metrics import Metric
from isoflop.training.rundir import RunDirectory
from isoflop.training.tasks import TASKS

# What may differ between the runs of one group.
SEED_OPTIONS = ("seed", "data", "spectra", "backbone_run")

# Methods that are written otherwise than they are registered.
METHOD_NAMES: dict[str, str] = {
    "rigl": "RigL", "set": "SET", "dense": "Dense", "snfs": "SNFS", "snip": "SNIP",
    "iterative_snip": "iterative SNIP", "grasp": "GraSP", "force": "FORCE", "synflow": "SynFlow",
    "gmp": "GMP", "granet": "GraNet", "sr_ste": "SR-STE",
}  # fmt: skip

_METRICS = ("epoch", "step", "train_loss", "density", "training_flops")


@dataclass(frozen=True, eq=False)
class Run:
    """What a run directory holds.

    Attributes:
        path: The directory.
        config: All options.
        summary: The result, or None if the run is not complete.
        metrics: One entry per epoch.
        changes: One entry per change of the masks.
        spectra: One entry per measurement of the spectra.
        plan: The plan, if there is one.
        problems: What is missing or damaged, for people to read.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    spectra: list[dict[str, Any]]
    plan: Plan | None
    problems: tuple[str, ...]

    @property
    def task(self) -> str:
        """Name of the recipe, the results of which may be compared."""
        return str(self.config["recipe"]["name"])

    @property
    def metric(self) -> Metric:
        """The measure that heads the results."""
        return metric_of(self.config)

    @functools.cached_property
    def masks(self) -> dict[str, dict[str, np.ndarray]]:
        """By parameter name the masks `initial`, `present` and `ever`, bool; none if dense.

        They are read from the latest checkpoint; a run without one has none.
        """
        state = load_checkpoint(self.path)
        if state is None or "observer" not in state:
            return {}
        masks = unpack(state["observer"]["masks"])
        return {name: {k: m.numpy() for k, m in kinds.items()} for name, kinds in masks.items()}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        index: Number of the group, which decides its colour in all figures.
        label: Name that no other group has.
        runs: The runs, incomplete ones included.
    """

    index: int
    label: str
    runs: tuple[Run, ...]

    @property
    def task(self) -> str:
        """Name of the recipe."""
        return self.runs[0].task

    @property
    def metric(self) -> Metric:
        """The measure that heads the results."""
        return self.runs[0].metric

    @property
    def config(self) -> dict[str, Any]:
        """The options, seed and data aside those of every run."""
        return self.runs[0].config


def load_run(path: str | Path) -> Run:
    """Read a run directory, complete or not.

    Raises:
        RunDirectoryError: There is no run, or its configuration is damaged.
    """
    run = RunDirectory(path)
    if not run.config_path.exists():
        raise RunDirectoryError(f"{path} holds no run.")
    config = read_json(run.config_path)
    if not isinstance(config.get("recipe"), dict) or not {"transform", "method"} <= config.keys():
        raise RunDirectoryError(f"{run.config_path} is no configuration of a run.")
    problems = []
    summary = plan = None
    try:
        summary = run.summary()
    except RunDirectoryError as error:
        problems.append(str(error))
    try:
        plan = Plan.load(run.plan_path) if run.plan_path.exists() else None
    except (PlanError, OSError, UnicodeDecodeError) as error:
        problems.append(f"plan.json cannot be used: {error}")
    try:
        score = f"test_{metric_of(config).name}"
    except UnknownNameError as error:
        raise RunDirectoryError(f"{run.config_path} is of another version: {error}") from error
    every = [line for line in run.metrics() if {score, *_METRICS} <= line.keys()]
    metrics = [line for line in every if all(_is_finite(line[key]) for key in (score, *_METRICS))]
    if len(metrics) < len(every):
        epoch = next(line["epoch"] for line in every if line not in metrics)
        problems.append(
            f"{len(every) - len(metrics)} epochs, the first of them epoch {epoch}, have values that "
            "are not finite; figures leave them out."
        )
    headline = metric_of(config).name
    if summary is not None and not _is_finite(summary.get(headline)):
        problems.append(
            f"The run ended with {headline} {summary.get(headline)}; tables leave it out."
        )
        summary, ended = None, summary
    else:
        ended = summary
    epochs = config["recipe"].get("epochs")
    if ended is None:
        problems.append(
            f"The run is not complete: {len(every)} of {epochs} epochs are done. Finish it with "
            "--resume."
        )
    elif len(every) < ended["epochs"]:
        problems.append(
            f"metrics.jsonl is cut short: it holds {len(every)} of {ended['epochs']} epochs."
        )
    changes = [line for line in run.masks() if "layers" in line]
    spectra = [
        line
        for line in run.spectra()
        if all(
            value is None or _is_finite(value) for value in line.get("network", {"": ""}).values()
        )
    ]
    return Run(Path(path), config, summary, metrics, changes, spectra, plan, tuple(problems))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def metric_of(config: Mapping[str, Any]) -> Metric:
    """Return the measure that heads the results of the runs with this `config.json`."""
    return TASKS.get(config["recipe"].get("task", "classification")).metric


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs that differ in nothing but the seed, in order of first appearance.

    Of runs that do not even differ in the seed, which are the same run once more, the one that holds
    the most is taken; its `problems` name the others.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        key = {name: value for name, value in run.config.items() if name not in SEED_OPTIONS}
        members.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    labels = _distinct_labels([group[0].config for group in members.values()])
    groups = []
    for index, (name, group) in enumerate(zip(labels, members.values(), strict=True)):
        by_seed: dict[Any, list[Run]] = {}
        for run in group:
            by_seed.setdefault(run.config["seed"], []).append(run)
        groups.append(Group(index, name, tuple(_fullest(same) for same in by_seed.values())))
    return groups


def _fullest(same: Sequence[Run]) -> Run:
    """Return the one of several records of one run that holds the most."""
    best = max(same, key=lambda run: (run.summary is not None, len(run.spectra), len(run.metrics)))
    others = [str(run.path) for run in same if run is not best]
    if not others:
        return best
    note = f"The same options and seed as {', '.join(others)}, which is left out."
    return dataclasses.replace(best, problems=(*best.problems, note))


def label(config: Mapping[str, Any]) -> str:
    """Return a short name for the runs with this `config.json`."""
    if config.get("backbone") is not None:
        return f"{label(config['backbone'])} backbone"
    transform, sparsity, method = config["transform"], config["sparsity"], config["method"]
    method_name = METHOD_NAMES.get(method) or str(method)
    if config.get("storage") == "compressed":
        method_name += ", compressed"
    for option, default in (("pattern", "unstructured"), ("allocation", "uniform")):
        if config.get(option, default) != default:
            method_name += f" {config[option]}"
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


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration without nesting: ``{"recipe.lr": 0.1, …}``."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _distinct_labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the labels; where several are equal, with the options in which they differ."""
    labels = [label(config) for config in configs]
    options = [
        {
            key: value
            for key, value in flat(config).items()
            if key.partition(".")[0] not in SEED_OPTIONS
        }
        for config in configs
    ]
    result = []
    for name, own in zip(labels, options, strict=True):
        alike = [other for other, given in zip(options, labels, strict=True) if given == name]
        differing = [
            f"{key.rpartition('.')[2]}={value}"
            for key, value in own.items()
            if value is not None and any(other.get(key) != value for other in alike)
        ]
        result.append(f"{name} ({', '.join(differing)})" if differing else name)
    return result
