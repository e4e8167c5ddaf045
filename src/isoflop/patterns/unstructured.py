"""No pattern at all."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isoflop.patterns.base import PATTERNS, Pattern
from isoflop.patterns.select import drop_lowest, highest


@PATTERNS.register("unstructured")
@dataclass(frozen=True, kw_only=True)
class Unstructured(Pattern):
    """Any position may be non-zero, independently of the others.

    Of equal scores the lower flat index wins.
    """

    preselects: ClassVar[bool] = True

    def __str__(self) -> str:
        return "unstructured"

    def count(self, shape: tuple[int, ...], nnz: int) -> int:
        """Return `nnz`, or the nearest number that is possible at all."""
        return min(max(nnz, 1), math.prod(shape))

    def check(self, mask: Tensor) -> bool:
        """Return whether `mask` is boolean and not empty."""
        return mask.dtype == torch.bool and bool(mask.any())

    def top(self, scores: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
        """Return the mask of the `count` highest `scores`."""
        return highest(scores, count, allowed)

    def random(
        self, shape: tuple[int, ...], count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a CPU mask of exactly `count` active positions, drawn uniformly."""
        order = torch.randperm(math.prod(shape), generator=generator)
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[:count]] = True
        return mask.view(shape)

    def drop_and_grow(
        self,
        mask: Tensor,
        drop_scores: Tensor,
        grow_scores: Tensor,
        drop: int,
        grow: int | None = None,
    ) -> Tensor:
        """Return a new mask: `drop` active positions dropped, `grow` others or the same grown."""
        survivors = drop_lowest(mask, drop_scores, drop)
        return survivors | highest(grow_scores, drop if grow is None else grow, ~survivors)

    def candidates(self, mask: Tensor, grow_scores: Tensor, grow: int) -> Tensor:
        """Return the `grow` inactive positions of highest score."""
        return highest(grow_scores, min(grow, int((~mask).sum())), ~mask)
