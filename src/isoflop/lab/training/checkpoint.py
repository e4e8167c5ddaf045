"""Checkpoints that are complete or absent: written aside, then renamed."""

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.errors import RunDirectoryError
from isoflop.files import written_aside
from isoflop.lab.tasks import TaskData
from isoflop.lab.training.observer import Observer
from isoflop.lab.training.sharding import gathered, spread_model_state, spread_optimizer_state
from isoflop.sparsity.sparsifier import Sparsifier

PREFIX = "checkpoint-"
STATE = "state.pt"


@dataclass(kw_only=True)
class Progress:
    """What a run has done so far; part of every checkpoint.

    Attributes:
        epoch: Epochs completed.
        step: Optimizer steps taken.
        measures: The task's measures on the test data after the latest epoch.
        best: The best value after any epoch of the measure that heads the task's results.
        training_flops: FLOPs of all forward and backward passes.
        seconds: Time spent, evaluation included but spectra not, over all processes that resumed one
            another.
    """

    epoch: int = 0
    step: int = 0
    measures: dict[str, float] = dataclasses.field(default_factory=dict)
    best: float | None = None
    training_flops: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class Checkpoint:
    """The parts of a run whose state makes a checkpoint.

    Attributes:
        model: The model, not wrapped for several processes.
        optimizer: Its optimizer, not wrapped either.
        sparsifier: What masks the model.
        observer: What watches the masks.
        data: The data.
        progress: What the run has done so far.
        scaler: Scales gradients in fp16; None in other precisions.
        sharded: Whether all of this is spread over several processes.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sparsifier: Sparsifier
    observer: Observer
    data: TaskData
    progress: Progress
    scaler: Any
    sharded: bool

    def gather(self, *, keep: bool) -> dict[str, Any]:
        """Return the state of all parts, with whole tensors. All processes must call this.

        Args:
            keep: Whether this process wants the tensors of a sharded model.
        """
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "observer": self.observer.state_dict(),
            "data": self.data.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "random": random_state(),
            "progress": dataclasses.asdict(self.progress),
        }
        return gathered(state, keep=keep) if self.sharded else state

    def restore(self, state: dict[str, Any]) -> None:
        """Put all parts into the state that `gather` returned, on any number of processes."""
        self.model.load_state_dict(spread_model_state(state["model"], self.model))
        self.optimizer.load_state_dict(spread_optimizer_state(state["optimizer"], self.optimizer))
        self.sparsifier.load_state_dict(state["sparsifier"])
        # The observer looks at the masks that the sparsifier has loaded.
        self.observer.load_state_dict(state["observer"])
        self.data.load_state_dict(state["data"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])
        vars(self.progress).update(state["progress"])


def save_checkpoint(directory: Path, epoch: int, state: dict[str, Any]) -> None:
    """Save the state after `epoch` epochs, then delete older ones.

    Args:
        directory: The run directory.
        epoch: Epochs completed.
        state: Tensors and plain data only, so that loading never runs code.

    Raises:
        WriteError: The disk is full, or cannot be written; older checkpoints are left as they were.
    """
    target = directory / f"{PREFIX}{epoch:06d}"
    with written_aside(target) as aside:
        aside.mkdir()
        with open(aside / STATE, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # what PyTorch makes of the error of a full disk
                raise OSError(str(error)) from error
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.rmtree(target)
        os.rename(aside, target)
    for old in _checkpoints(directory):
        if old != target:
            shutil.rmtree(old)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """Load the latest state, on the CPU, or return None if there is none.

    Raises:
        RunDirectoryError: The checkpoint is damaged.
    """
    checkpoints = _checkpoints(directory)
    if not checkpoints:
        return None
    path = checkpoints[-1] / STATE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        raise RunDirectoryError(f"The checkpoint {path} is damaged: {error}") from error


def random_state() -> dict[str, Any]:
    """Return the state of PyTorch's random number generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{PREFIX}*"))
