"""Checkpoints that are complete or absent: written aside, then renamed."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import RunDirectoryError
from isoflop.files import written_aside

PREFIX = "checkpoint-"
STATE = "state.pt"


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
