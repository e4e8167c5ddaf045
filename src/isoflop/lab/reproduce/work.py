"""What has to be done for a table: units of work, each in a process of its own."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from isoflop.errors import IsoflopError, RunDirectoryError
from isoflop.files import causes, make_folder, read_json, write_text
from isoflop.lab.recipes import Recipe
from isoflop.lab.report.figures.speed import read_bench
from isoflop.lab.training import RunDirectory, train
from isoflop.lab.training.evaluate import evaluate
from isoflop.lab.training.harness import LEADERBOARD
from isoflop.lab.training.setup import Job

_FULL = {errno.ENOSPC, errno.EDQUOT}


class Work(ABC):
    """A unit of work, which can be sent to other processes."""

    alone: ClassVar[bool] = False
    """Whether nothing else may run meanwhile."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Where the result is, seen from the folder; two units of one name are the same."""

    @property
    def needs(self) -> "tuple[Work, ...]":
        """What must be done before."""
        return ()

    @abstractmethod
    def result(self, folder: Path) -> Any:
        """Return the result, or None if there is none yet."""

    @abstractmethod
    def run(self, folder: Path) -> None:
        """Do the work, or what is left of it."""


BACKBONE_GAP = 0.07
"""Largest relative gap between the FLOPs of a backbone and of the dense one.

The paper's backbones come from classifiers that meet the budget as a whole, at 224 × 224 pixels and with
their last layer, which stays dense and grows with the width. Without it, and with the last stage dilated
for segmentation, they cost less than the dense one: at 90 %, 0.06 % on COCO and 6.1 % on Cityscapes.
"""

_FROM_BACKBONE = ("backbone", "backbone_run", "method", "method_config")
"""Options that a run takes over from its backbone."""


@dataclass(frozen=True, kw_only=True)
class RunWork(Work):
    """A training run.

    Attributes:
        job: What to train.
        backbone: The run whose model is transferred.
    """

    job: Job
    backbone: "RunWork | None" = None

    @property
    def name(self) -> str:
        """Path of the run directory, which follows from the options but seed and data.

        Values that are the defaults of recipes do not count, so that a recipe that gets a new one
        is still known by its runs.
        """
        config = self.job.config()
        seed = config.pop("seed")
        del config["data"]
        defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
        config["recipe"] = {k: v for k, v in config["recipe"].items() if v != defaults[k]}
        if self.backbone is not None:
            config["backbone"] = self.backbone.name
        parts = [config["recipe"]["name"]]
        if config["transform"] is not None:
            parts.append(config["transform"])
        if config["sparsity"]:
            parts.append(f"{config['sparsity']:g}")
        if (config["transform_config"] or {}).get("width"):
            parts.append(f"width{config['transform_config']['width']:g}")
        parts.append(config["method"])
        if config["pattern"] != "unstructured":
            parts.append(config["pattern"].replace(":", "of"))
        return f"runs/{'-'.join(parts)}-{_digest(config)}/seed{seed}"

    @property
    def needs(self) -> tuple[Work, ...]:
        """The backbone."""
        return () if self.backbone is None else (self.backbone,)

    def result(self, folder: Path) -> dict[str, Any] | None:
        """Return the summary of the run, if it is complete.

        Raises:
            RunDirectoryError: A file of it is damaged, or its options are others than their name
                says, as after a change of defaults.
        """
        run = RunDirectory(folder / self.name)
        summary = run.summary()
        if summary is not None:
            old, new = read_json(run.config_path), json.loads(json.dumps(self.job.config()))
            if self.backbone is not None:
                new = {key: value for key, value in new.items() if key not in _FROM_BACKBONE}
                del new["recipe"]["lr"]  # sparse backbones may have one of their own
            if not _agree(old, {**new, "data": old.get("data")}):
                raise RunDirectoryError(
                    f"The run in {run.path} had other options, with other defaults perhaps. Delete it, "
                    "or choose another --out."
                )
        return summary

    def run(self, folder: Path) -> None:
        """Train, from where an earlier attempt was interrupted."""
        job = self.job
        path = folder / self.name
        make_folder(path.parent)
        options: dict[str, Any] = {}
        if self.backbone is not None:
            options["backbone"] = folder / self.backbone.name
            options["backbone_gap"] = BACKBONE_GAP
        train(
            job.recipe,
            path,
            transform=job.transform,
            method=job.method,
            sparsity=job.sparsity,
            allocation=job.allocation,
            pattern=job.pattern,
            storage=job.storage,
            scope=job.scope,
            seed=job.seed,
            data=job.data,
            spectra=job.spectra,
            resume=True,
            quiet=True,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationWork(Work):
    """The Open LLM leaderboard's tasks on a trained language model.

    Attributes:
        training: The run that trained it.
    """

    training: RunWork

    @property
    def name(self) -> str:
        """Path of the file of the results."""
        return f"{self.training.name}/evaluation.json"

    @property
    def needs(self) -> tuple[Work, ...]:
        """The training."""
        return (self.training,)

    def result(self, folder: Path) -> dict[str, Any] | None:
        """Return the results, once all tasks are evaluated."""
        path = folder / self.name
        found = read_json(path) if path.exists() else {}
        return found if "leaderboard_mean" in found else None

    def run(self, folder: Path) -> None:
        """Evaluate the tasks."""
        evaluate(folder / self.training.name, tasks=tuple(LEADERBOARD))


@dataclass(frozen=True, kw_only=True)
class TimingWork(Work):
    """A call of `isoflop bench`.

    Attributes:
        arguments: Its arguments, without sparsities.
        sparsities: The sparsities.
    """

    arguments: tuple[str, ...]
    sparsities: tuple[float, ...]

    alone: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Path of the file of the results."""
        return f"bench/{self.arguments[0]}-{_digest([self.arguments, self.sparsities])}.json"

    def result(self, folder: Path) -> list[dict[str, Any]] | None:
        """Return the results of all sparsities, if they were measured."""
        path = folder / self.name
        return read_bench(path) if path.exists() else None

    def run(self, folder: Path) -> None:
        """Run the command; its file is there once all is measured."""
        path = folder / self.name
        make_folder(path.parent)
        aside = path.with_suffix(".partial")
        command = [sys.executable, "-m", "isoflop.lab.cli", "bench", *self.arguments]
        command += ["--sparsity", *map(str, self.sparsities), "--out", str(aside)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
            raise IsoflopError(f"isoflop bench failed: {lines[-1]}")
        os.replace(aside, path)


def execute(work: Work, folder: Path) -> str | None:
    """Do a unit of work and return why it failed, or None.

    The traceback of an error that is no mistake of the user is written to a file beside the result.
    """
    try:
        work.run(folder)
    except Exception as error:
        if any(isinstance(e, OSError) and e.errno in _FULL for e in causes(error)):
            return (
                "The disk is full. Free some space and give the same command again: the work goes "
                "on from where it was saved last."
            )
        if isinstance(error, IsoflopError):
            return str(error)
        path = folder / f"{work.name}.error"
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, traceback.format_exc())
        return f"{type(error).__name__}: {error} (traceback in {path})"
    return None


def is_done(work: Work, folder: Path) -> bool:
    """Return whether a unit of work has its result; a damaged one counts as none."""
    try:
        return work.result(folder) is not None
    except IsoflopError:
        return False


def _agree(old: Any, new: Any) -> bool:
    """Return whether two configurations are equal in the options that both have."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(_agree(old[key], new[key]) for key in old.keys() & new.keys())
    return old == new


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
