"""One workload at one sparsity: the models, the batches, and the right results."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from isoflop.lab.bench.work import Forward, Work
from isoflop.patterns import parse_pattern


@dataclass(kw_only=True)
class Job:
    """A model and what it has to do.

    Attributes:
        model: The model, in training mode or not as the work needs it. Contestants copy it.
        inputs: The batch.
        start: Makes the work from the model or another form of it, and the batch or another layout.
    """

    model: nn.Module
    inputs: Tensor
    start: Callable[[nn.Module, Tensor], Work]

    @functools.cached_property
    def reference(self) -> dict[str, Tensor]:
        """The right results: those of plain PyTorch."""
        return self.start(copy.deepcopy(self.model), self.inputs).results()


@dataclass(kw_only=True)
class Case:
    """What the contestants compete in.

    Attributes:
        workload: What is said of it in the results, among it `kind` and `sparsity`.
        dense: The original model and its work.
        sparse: The transformed model with its masks (at sparsity 0 the original) and its work.
        threads: Threads that it may take.
        folder: A folder for files of the contestants.
    """

    workload: dict[str, Any]
    dense: Job
    sparse: Job
    threads: int
    folder: Path

    @property
    def kind(self) -> Literal["inference", "training", "matmul"]:
        """Kind of workload."""
        return self.workload["kind"]

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.dense.start is not Forward


def block_size(pattern: str) -> int:
    """Return what the sizes of a weight must be multiples of, for a pattern of blocks to be whole."""
    return math.lcm(*parse_pattern(pattern).block)
