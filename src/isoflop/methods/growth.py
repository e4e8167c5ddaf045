"""By what methods that drop and grow choose the positions to grow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Growth:
    """What ranks the positions that can grow, and the gradients that this takes.

    Attributes:
        scores: Returns what activating each position is worth, from the weight, from what the method
            remembers of its gradients, and by a CPU generator for every random choice, so that
            these are the same whatever device trains.
        gradients: Which gradients of masked weights are needed: ``"none"``, ``"last"`` (that of the
            step before an update) or ``"all"`` (those of all steps, of which the method remembers).
    """

    scores: Callable[[Tensor, Tensor | None, torch.Generator], Tensor]
    gradients: Literal["none", "last", "all"]


def _random(weight: Tensor, memory: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return a random ranking of all positions."""
    del memory
    # A permutation rather than uniform floats: it has no ties, which would favour low indices.
    ranking = torch.randperm(weight.numel(), generator=generator)
    return ranking.view(weight.shape).to(weight.device)


def _magnitude(weight: Tensor, memory: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return the magnitude of what is remembered."""
    del weight, generator
    assert memory is not None
    return memory.abs()


RANDOM = Growth(_random, gradients="none")
"""Uniformly at random."""

GRADIENT = Growth(_magnitude, gradients="last")
"""The largest ``|dL/dw|``."""

MOMENTUM = Growth(_magnitude, gradients="all")
"""The largest magnitude of what `Method.remember` has made of all gradients, such as their average."""
