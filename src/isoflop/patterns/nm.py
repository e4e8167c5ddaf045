"""N of every M consecutive weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.patterns import options, tiles
from isoflop.patterns.base import PATTERNS, Pattern
from isoflop.patterns.select import drop_lowest, highest_of_each


@PATTERNS.register("nm")
@dataclass(frozen=True, kw_only=True)
class NM(Pattern):
    """N:M: exactly N of every M consecutive weights along the input dimension are non-zero.

    Layout: groups run along dimension 1 of a weight (output, input, *kernel), for convolutions at
    each kernel position by itself, as sparse tensor cores read them in channels-last layout.

    Remainder: where M does not divide the input dimension, the last r weights form a group that
    keeps min(N, r): what the hardware allows once the weight is padded with zeros. The input
    dimension of a depthwise convolution is 1, so N:M leaves it dense.

    Rewiring: survivors stay, and each group is filled up to N with its positions of highest grow
    score. As every group regrows what it lost, the numbers dropped and grown are both exactly
    `drop`, and the argument `grow` changes nothing.

    Source: Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
    scratch", https://arxiv.org/abs/2102.04010; Mishra et al. 2021, "Accelerating sparse deep neural
    networks", https://arxiv.org/abs/2104.08378.

    Attributes:
        n: Non-zeros in a group.
        m: Weights in a group, at most 64.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        options.check_nm(self.n, self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def count(self, shape: tuple[int, ...], nnz: int = 0) -> int:
        """Return the one number of active positions that a mask of `shape` has."""
        del nnz
        return sum(
            region.num_tiles * min(self.n, region.tile[1])
            for region in tiles.regions(shape, 1, self.m)
        )

    def check(self, mask: Tensor) -> bool:
        """Return whether every group of `mask` has exactly N active positions."""
        matrices = tiles.to_matrices(mask)
        return all(
            bool((tiles.cut(matrices, region).sum((1, 2)) == min(self.n, region.tile[1])).all())
            for region in tiles.regions(tuple(mask.shape), 1, self.m)
        )

    def top(self, scores: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
        """Return the mask of the N highest `scores` of each group; the lower index wins ties.

        A group with fewer than N `allowed` positions takes its best others.
        """
        assert count == self.count(tuple(scores.shape))
        return self._fill(scores, allowed)

    def random(
        self, shape: tuple[int, ...], count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a CPU mask of exactly `count` active positions, drawn uniformly."""
        return self.top(torch.rand(shape, generator=generator, dtype=torch.float64), count)

    def drop_and_grow(
        self,
        mask: Tensor,
        drop_scores: Tensor,
        grow_scores: Tensor,
        drop: int,
        grow: int | None = None,
    ) -> Tensor:
        """Return a new mask: `drop` active positions dropped, every group filled up again."""
        del grow
        return self._fill(grow_scores, drop_lowest(mask, drop_scores, drop))

    def _fill(self, scores: Tensor, first: Tensor | None) -> Tensor:
        """Return the N positions of each group that are in `first`, then of highest score."""
        shape = tuple(scores.shape)
        scores = tiles.to_matrices(scores)
        first = None if first is None else tiles.to_matrices(first)
        mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
        for region in tiles.regions(shape, 1, self.m):
            chosen = highest_of_each(
                _groups(scores, region),
                self.n,
                None if first is None else _groups(first, region),
            )
            tiles.paste(mask, region, chosen.t()[:, None])
        return tiles.from_matrices(mask, shape)


def _groups(matrices: Tensor, region: tiles.Region) -> Tensor:
    """Return the groups of `region` as columns: (weight in the group, group)."""
    return tiles.cut(matrices, region)[:, 0].t().contiguous()
