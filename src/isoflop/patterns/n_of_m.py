"""What the patterns that keep N of every M weights have in common."""

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.patterns import tiles
from isoflop.patterns.base import Pattern, is_integer
from isoflop.patterns.select import drop_lowest

LARGEST_GROUP = 64
"""Bound on M: choosing inside a group compares all pairs."""


@dataclass(frozen=True, kw_only=True)
class NOfM(Pattern):
    """Base of the patterns whose tiles have N non-zeros in every row and column of M weights.

    How many positions are active depends on the shape of the weight alone. A ragged tile of a × b
    with a ≤ b has exactly min(N, b) non-zeros in each row, and columns that differ by as little as
    it takes for the rest of a regular b × b tile to exist: none has more than N, or fewer than
    N - (b - a). Likewise with rows and columns exchanged.

    Rewiring: survivors stay, and each tile is completed by the positions of highest total grow
    score. As every tile regrows what it lost, the numbers dropped and grown are both exactly
    `drop`, and the argument `grow` changes nothing.
    """

    suffix: ClassVar[str] = ""
    """What follows N:M in the text of the pattern."""

    n: int
    m: int

    def __post_init__(self) -> None:
        n, m = self.n, self.m
        if not is_integer(n) or not is_integer(m) or not 1 <= n < m <= LARGEST_GROUP:
            raise IsoflopError(
                f"N:M keeps n of every m weights: use integers with 1 <= n < m <= {LARGEST_GROUP}, "
                f"such as n=2, m=4, not n={n!r}, m={m!r}."
            )

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the pattern of a text such as ``"2:4"``, or None."""
        match = re.fullmatch(rf"(\d+):(\d+){re.escape(cls.suffix)}", text, re.IGNORECASE)
        return cls(n=int(match[1]), m=int(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.n}:{self.m}{self.suffix}"

    @property
    @abstractmethod
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile."""

    @abstractmethod
    def best(
        self, scores: Tensor, *, fixed: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Return the mask of highest total score that contains `fixed`, in `allowed` if it can."""

    def regions(self, shape: tuple[int, ...]) -> list[tiles.Region]:
        """Return the tiles of a weight of `shape`."""
        return tiles.regions(shape, *self.tile)

    def count(self, shape: tuple[int, ...], nnz: int = 0) -> int:
        """Return the one number of active positions that a mask of `shape` has."""
        del nnz
        return sum(
            region.num_tiles * min(region.tile) * min(self.n, max(region.tile))
            for region in self.regions(shape)
        )

    def check(self, mask: Tensor) -> bool:
        """Return whether the rows and columns of every tile of `mask` have the sums they must."""
        matrices = tiles.to_matrices(mask)
        for region in self.regions(tuple(mask.shape)):
            chosen = tiles.cut(matrices, region)
            for dim, length in ((2, region.tile[1]), (1, region.tile[0])):
                missing = max(region.tile) - length
                lowest = min(self.n, max(region.tile)) - missing
                sums = chosen.sum(dim)
                if not bool(((sums >= lowest) & (sums <= min(self.n, length))).all()):
                    return False
        return True

    def top(self, scores: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
        """Return the mask of highest total score.

        A tile in which no mask fits inside `allowed` goes outside as little as it must.
        """
        assert count == self.count(tuple(scores.shape))
        return self.best(scores, allowed=allowed)

    def random(
        self, shape: tuple[int, ...], count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a CPU mask of exactly `count` active positions: the best for random scores."""
        return self.top(torch.rand(shape, generator=generator, dtype=torch.float64), count)

    def drop_and_grow(
        self,
        mask: Tensor,
        drop_scores: Tensor,
        grow_scores: Tensor,
        drop: int,
        grow: int | None = None,
    ) -> Tensor:
        """Return a new mask: `drop` active positions dropped, every tile completed again."""
        del grow
        return self.best(grow_scores, fixed=drop_lowest(mask, drop_scores, drop))
