"""N of every M consecutive weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isoflop.patterns import tiles
from isoflop.patterns.base import PATTERNS
from isoflop.patterns.n_of_m import NOfM
from isoflop.patterns.select import highest_of_each


@PATTERNS.register("nm")
@dataclass(frozen=True, kw_only=True)
class NM(NOfM):
    """N:M: exactly N of every M consecutive weights along the input dimension are non-zero.

    Layout: groups run along dimension 1 of a weight (output, input, *kernel), for convolutions at
    each kernel position by itself, as sparse tensor cores read them in channels-last layout.

    Remainder: where M does not divide the input dimension, the last r weights form a group that
    keeps min(N, r): what the hardware allows once the weight is padded with zeros. The input
    dimension of a depthwise convolution is 1, so N:M leaves it dense.

    Ties: of equal scores in a group the lower index wins. Random masks are drawn uniformly.

    Source: Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
    scratch", https://arxiv.org/abs/2102.04010; Mishra et al. 2021, "Accelerating sparse deep neural
    networks", https://arxiv.org/abs/2104.08378.

    Attributes:
        n: Non-zeros in a group.
        m: Weights in a group, at most 64.
    """

    form: ClassVar[str] = "'2:4' (N:M)"

    n: int = 2
    m: int = 4

    @property
    def tile(self) -> tuple[int, int]:
        """A group of M inputs."""
        return 1, self.m

    def best(
        self, scores: Tensor, *, fixed: Tensor | None = None, allowed: Tensor | None = None
    ) -> Tensor:
        """Return the N positions of each group that are fixed or allowed, then of highest score."""
        shape = tuple(scores.shape)
        first = allowed if fixed is None else fixed
        scores = tiles.to_matrices(scores)
        first = None if first is None else tiles.to_matrices(first)
        mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
        for region in self.regions(shape):
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
