"""Patterns: how scores become masks.

A pattern decides which positions may be non-zero together. It knows nothing of training: methods
hand it scores and receive masks with an exact number of active positions.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.registry import Registry


class Pattern(ABC):
    """Turns scores into boolean masks. Scores must not contain NaN."""

    @abstractmethod
    def count(self, shape: tuple[int, ...], nnz: int) -> int:
        """Return the number of active positions nearest to `nnz` that a mask can have exactly."""

    @abstractmethod
    def top(self, scores: Tensor, count: int | Tensor, allowed: Tensor | None = None) -> Tensor:
        """Return the mask of the `count` highest `scores`.

        Args:
            scores: Any numeric tensor.
            count: Exact number of positions to choose; an integer, or a 0-dimensional tensor on the
                device of `scores`.
            allowed: Boolean mask of the positions to choose from, at least `count` of them; all
                positions if None.
        """

    @abstractmethod
    def random(
        self, shape: tuple[int, ...], count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a CPU mask of exactly `count` active positions, drawn uniformly."""

    @abstractmethod
    def rewire(
        self,
        mask: Tensor,
        drop_scores: Tensor,
        grow_scores: Tensor,
        drop: int,
        grow: int | None = None,
    ) -> Tensor:
        """Return a new mask in which some active positions have been chosen anew.

        The active positions of largest `drop_scores` survive, all but `drop` of them. Then the
        `grow` positions of largest `grow_scores` become active, among all that did not survive:
        a position that was just dropped may come back.

        Args:
            mask: The present mask, with at least `drop` active positions.
            drop_scores: What an active position is worth; those of inactive positions are ignored.
            grow_scores: What activating a position is worth.
            drop: Number of positions to drop.
            grow: Number of positions to grow; as many as are dropped if None.
        """


PATTERNS: Registry[type[Pattern]] = Registry("pattern")


@PATTERNS.register("unstructured")
@dataclass(frozen=True, kw_only=True)
class Unstructured(Pattern):
    """Any position may be non-zero, independently of the others.

    Equal scores are told apart by position: the lower flat index wins. Masks therefore do not
    depend on the device, and all workers of a distributed run choose alike.
    """

    def count(self, shape: tuple[int, ...], nnz: int) -> int:
        """Return `nnz`, but at least 1 and at most the size."""
        return min(max(1, nnz), math.prod(shape))

    def top(self, scores: Tensor, count: int | Tensor, allowed: Tensor | None = None) -> Tensor:
        """Return the mask of the `count` highest `scores`; of equal ones the first in order."""
        # Ranks from a stable sort, rather than a threshold or `topk`: ties would make a threshold
        # choose too many, and `topk` breaks them differently from device to device. Nothing here
        # reads a value back from the device.
        order = scores.flatten().argsort(descending=True, stable=True)
        eligible = torch.ones_like(order, dtype=torch.bool)
        if allowed is not None:
            eligible = allowed.flatten()[order]
        chosen = eligible & (eligible.cumsum(0) <= count)
        return torch.empty_like(chosen).scatter_(0, order, chosen).view(scores.shape)

    def random(
        self, shape: tuple[int, ...], count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a CPU mask of exactly `count` active positions, drawn uniformly."""
        order = torch.randperm(math.prod(shape), generator=generator)
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[:count]] = True
        return mask.view(shape)

    def rewire(
        self,
        mask: Tensor,
        drop_scores: Tensor,
        grow_scores: Tensor,
        drop: int,
        grow: int | None = None,
    ) -> Tensor:
        """Return a new mask with `drop` positions dropped, and `grow` grown."""
        survivors = self.top(drop_scores, mask.sum() - drop, allowed=mask)
        return survivors | self.top(grow_scores, drop if grow is None else grow, ~survivors)
