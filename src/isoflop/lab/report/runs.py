"""Run directories as reports see them, and groups of runs that differ in nothing but the seed."""

import functools
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import PlanError, RunDirectoryError, UnknownNameError
from isoflop.files import read_json
from isoflop.lab.metrics import Metric
from isoflop.lab.report.figure import is_finite
from isoflop.lab.tasks import TASKS
from isoflop.lab.training.checkpoint import load_checkpoint
from isoflop.lab.training.mask_history import shares, unpack
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.methods import METHODS
from isoflop.plan import Plan

# What differs between any runs: the data may lie elsewhere.
_OWN_OPTIONS = ("seed", "data")
# What may differ between the runs of one group, unless two of them have the same seed.
SEED_OPTIONS = (*_OWN_OPTIONS, "spectra", "backbone_run")

_OPTIONS = {"transform", "transform_config", "sparsity", "method", "seed"}
_METRICS = ("epoch", "step", "train_loss", "density", "training_flops")
_COUNTS = ("seed", "epochs", "macs", "dense_macs", "nnz", "numel")


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
    recipe = config.get("recipe")
    if not (isinstance(recipe, dict) and "name" in recipe and config.keys() >= _OPTIONS):
        raise RunDirectoryError(f"{run.config_path} is no configuration of a run.")
    try:
        measure = metric_of(config).name
    except UnknownNameError as error:
        raise RunDirectoryError(f"{run.config_path} is of another version: {error}") from error
    score = f"test_{measure}"
    problems: list[str] = []
    summary = plan = None
    try:
        summary = _summary(run, measure, problems)
    except RunDirectoryError as error:
        problems.append(str(error))
    try:
        plan = Plan.load(run.plan_path) if run.plan_path.exists() else None
    except (PlanError, OSError, UnicodeDecodeError) as error:
        problems.append(f"plan.json cannot be used: {error}")
    metrics = [
        {**line, **{name: _result(line[name]) for name in (score, *_METRICS)}}
        for line in run.metrics()
        if {score, *_METRICS} <= line.keys() and is_finite(line["epoch"], line["step"])
    ]
    infinite = sum(not is_finite(line[score]) for line in metrics)
    if infinite:
        problems.append(f"{score} is not finite after {infinite} of {len(metrics)} epochs.")
    epochs = config["recipe"].get("epochs")
    if summary is None:
        problems.append(
            f"The run is not complete: {len(metrics)} of {epochs} epochs are done. Finish it with "
            "--resume."
        )
    elif len(metrics) < summary["epochs"]:
        problems.append(
            f"metrics.jsonl is cut short: it holds {len(metrics)} of {summary['epochs']} epochs."
        )
    changes = [line for line in run.masks() if is_finite(line["step"]) and _is_change(line)]
    spectra = [
        line
        for line in run.spectra()
        if is_finite(line["step"]) and isinstance(line.get("network"), dict)
    ]
    return Run(Path(path), config, summary, metrics, changes, spectra, plan, tuple(problems))


def _summary(run: RunDirectory, metric: str, problems: list[str]) -> dict[str, Any] | None:
    """Return the result of a run, or None if there is none that can be used."""
    summary = run.summary()
    if summary is None:
        return None
    missing = [name for name in _COUNTS if not is_finite(summary.get(name))]
    if missing or not summary["dense_macs"]:
        problems.append(
            f"summary.json cannot be used: it lacks {', '.join(missing or ['dense_macs'])}."
        )
        return None
    if not is_finite(summary.get(metric)):
        problems.append(f"The result is not finite: {metric} is {summary.get(metric)}.")
    names = (metric, "training_flops", "seconds")
    return {**summary, **{name: _result(summary.get(name)) for name in names}}


def _result(value: Any) -> float:
    """Return a number of a file; NaN stands for what is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number else math.nan


def _is_change(line: Mapping[str, Any]) -> bool:
    try:
        shares(line["layers"])
    except (KeyError, TypeError, AttributeError):
        return False
    return True


def metric_of(config: Mapping[str, Any]) -> Metric:
    """Return the measure that heads the results of the runs with this `config.json`."""
    return TASKS.get(config["recipe"].get("task", "classification")).metric


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs that differ in nothing but the seed, in order of first appearance.

    Two runs with the same seed are not independent. Where they differ in how spectra were measured or
    in the backbone, they are put into groups of their own.

    Raises:
        RunDirectoryError: Two runs have the same options and the same seed.
    """
    members: list[list[Run]] = []
    for alike in _by_options(runs, SEED_OPTIONS):
        members += _by_options(alike, _OWN_OPTIONS) if _same_seed(alike) else [alike]
    for group in members:
        pair = _same_seed(group)
        if pair is not None:
            one, other = pair
            raise RunDirectoryError(
                f"The runs in {one.path} and {other.path} have the same options and the same seed, "
                f"{one.config['seed']}; they would not be independent. Leave one of them out."
            )
    labels = _distinct_labels([group[0].config for group in members])
    named = enumerate(zip(labels, members, strict=True))
    return [Group(index, name, tuple(group)) for index, (name, group) in named]


def _by_options(runs: Iterable[Run], but: Collection[str]) -> list[list[Run]]:
    """Return runs that differ in nothing but some options together, in order of first appearance."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        key = {name: value for name, value in run.config.items() if name not in but}
        members.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    return list(members.values())


def _same_seed(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """Return two runs with the same seed, or None."""
    first: dict[Any, Run] = {}
    for run in runs:
        other = first.setdefault(run.config["seed"], run)
        if other is not run:
            return other, run
    return None


def method_name(name: str) -> str:
    """Return how a registered method is written, which is its class; an unknown one as it is."""
    return METHODS.get(name).__name__ if name in METHODS.names() else name


def label(config: Mapping[str, Any]) -> str:
    """Return a short name for the runs with this `config.json`."""
    if config.get("backbone") is not None:
        return f"{label(config['backbone'])} backbone"
    transform, sparsity, method = config["transform"], config["sparsity"], config["method"]
    name = method_name(method)
    if config.get("storage") == "compressed":
        name += ", compressed"
    for option, default in (("pattern", "unstructured"), ("allocation", "uniform")):
        if config.get(option, default) != default:
            name += f" {config[option]}"
    if transform is None:
        return name if not sparsity else f"{name} {100 * sparsity:g} %"
    size = f"{100 * sparsity:g} %"
    if not sparsity and config["transform_config"].get("width"):
        size = f"k={config['transform_config']['width']:g}"
    family = transform.replace("_", " ").title()
    if transform == "low_rank":
        return f"{family} {size} {name}"
    if method == "dense":
        return f"Dense {family}, as large as at {size}"
    return f"Sparse {family} {size} {name}"


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
    for but in (SEED_OPTIONS, _OWN_OPTIONS):
        labels = _with_options(labels, configs, but)
    return labels


def _with_options(
    labels: Sequence[str], configs: Sequence[Mapping[str, Any]], but: Collection[str]
) -> list[str]:
    """Return the labels; where several are equal, with the options but some in which they differ."""
    options = [
        {k: value for k, value in flat(config).items() if k.partition(".")[0] not in but}
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
