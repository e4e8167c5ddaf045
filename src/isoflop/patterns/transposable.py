"""N:M along both dimensions at once."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.patterns import options, tiles
from isoflop.patterns.base import PATTERNS, Pattern
from isoflop.patterns.regular import best_regular
from isoflop.patterns.select import drop_lowest


@PATTERNS.register("transposable")
@dataclass(frozen=True, kw_only=True)
class Transposable(Pattern):
    """Transposable N:M: both the weight and its transpose are N:M.

    Layout: at each position of the kernel, the matrix output × input is cut into M × M tiles; every
    row and every column of a tile has exactly N non-zeros. So the forward pass, which sums over
    input channels, and the gradient of the input, which sums over output channels, both read N:M
    groups, for convolutions in channels-last layout. In a grouped convolution the second holds if M
    divides the output channels of a group.

    Remainder: a ragged tile of a × b with a < b has exactly min(N, b) non-zeros in each row, and
    columns that differ by as little as it takes for the rest of a regular b × b tile to exist: none
    has more than N, or fewer than N - (b - a). Likewise with rows and columns exchanged.

    Masks have the highest total score of all masks of the pattern, by an exact solver that works on
    all tiles at once. In a random mask all positions are equally likely, but not all masks.

    Rewiring: survivors stay, and each tile is completed by the positions of highest total grow
    score. As every tile regrows what it lost, the numbers dropped and grown are both exactly
    `drop`, and the argument `grow` changes nothing. Few positions are free in a tile that lost few:
    one that lost a single position has to take it back.

    Source: Hubara et al. 2021, "Accelerated sparse neural training: a provable and efficient method
    to find N:M transposable masks", https://arxiv.org/abs/2102.08124; Sparse-IFT, appendix C.3.3
    (4:8, 2:8 and 1:8), https://arxiv.org/abs/2303.11525.

    Attributes:
        n: Non-zeros in a row or column of a tile.
        m: Rows and columns of a tile, at most 64.
    """

    n: int = 4
    m: int = 8

    def __post_init__(self) -> None:
        options.check_nm(self.n, self.m)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}-T"

    def count(self, shape: tuple[int, ...], nnz: int = 0) -> int:
        """Return the one number of active positions that a mask of `shape` has."""
        del nnz
        return sum(
            region.num_tiles * min(region.tile) * min(self.n, max(region.tile))
            for region in tiles.regions(shape, self.m, self.m)
        )

    def check(self, mask: Tensor) -> bool:
        """Return whether the rows and columns of every tile of `mask` have the sums they must."""
        matrices = tiles.to_matrices(mask)
        for region in tiles.regions(tuple(mask.shape), self.m, self.m):
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
        return self._best(scores, allowed=allowed)

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
        return self._best(grow_scores, fixed=drop_lowest(mask, drop_scores, drop))

    def _best(
        self, scores: Tensor, *, fixed: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Return the mask of highest total score that contains `fixed` and stays in `allowed`."""
        matrices = tiles.to_matrices(scores)
        mask = torch.ones(matrices.shape, dtype=torch.bool, device=scores.device)
        for region in tiles.regions(tuple(scores.shape), self.m, self.m):
            rows, columns = region.tile
            size = max(region.tile)
            if size <= self.n:
                continue
            # What completes a ragged tile to a regular one is free: no position there is better.
            padding = (0, size - columns, 0, size - rows)

            def squares(tensor: Tensor | None, fill: bool, region=region, padding=padding):
                if tensor is None:
                    return None
                return F.pad(tiles.cut(tiles.to_matrices(tensor), region), padding, value=fill)

            chosen = best_regular(
                F.pad(tiles.cut(matrices, region), padding),
                self.n,
                fixed=squares(fixed, False),
                allowed=squares(allowed, True),
            )
            tiles.paste(mask, region, chosen[:, :rows, :columns])
        return tiles.from_matrices(mask, tuple(scores.shape))
