"""N:M along both dimensions at once."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.patterns import tiles
from isoflop.patterns.base import PATTERNS
from isoflop.patterns.n_of_m import NOfM
from isoflop.patterns.regular import best_regular


@PATTERNS.register("transposable")
@dataclass(frozen=True, kw_only=True)
class Transposable(NOfM):
    """Transposable N:M: both the weight and its transpose are N:M.

    Layout: at each position of the kernel, the matrix output × input is cut into M × M tiles; every
    row and every column of a tile has exactly N non-zeros. So the forward pass, which sums over
    input channels, and the gradient of the input, which sums over output channels, both read N:M
    groups, for convolutions in channels-last layout. In a grouped convolution the second holds if M
    divides the output channels of a group.

    Masks have the highest total score of all masks of the pattern, by an exact solver that works on
    all tiles at once. In a random mask all positions are equally likely, but not all masks.

    Rewiring: few positions are free in a tile that lost few: one that lost a single position has to
    take it back.

    Source: Hubara et al. 2021, "Accelerated sparse neural training: a provable and efficient method
    to find N:M transposable masks", https://arxiv.org/abs/2102.08124; Sparse-IFT, appendix C.3.3
    (4:8, 2:8 and 1:8), https://arxiv.org/abs/2303.11525.

    Attributes:
        n: Non-zeros in a row or column of a tile.
        m: Rows and columns of a tile, at most 64.
    """

    form: ClassVar[str] = "'4:8-T' (transposable N:M)"
    suffix: ClassVar[str] = "-T"

    n: int = 4
    m: int = 8

    @property
    def tile(self) -> tuple[int, int]:
        """A square of M outputs and M inputs."""
        return self.m, self.m

    def best(
        self, scores: Tensor, *, fixed: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Return the mask of highest total score that contains `fixed`, in `allowed` if it can."""
        matrices = tiles.to_matrices(scores)
        mask = torch.ones(matrices.shape, dtype=torch.bool, device=scores.device)
        for region in self.regions(tuple(scores.shape)):
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
