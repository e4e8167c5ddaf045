"""Sparse evolutionary training, as it was first published."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.methods.base import METHODS
from isoflop.methods.set import SET


@METHODS.register("set_original")
@dataclass(frozen=True, kw_only=True)
class SETOriginal(SET):
    """SET as first published: drop the smallest weights of either sign, grow at random.

    Formula: in each layer, after every epoch but the last, the ``floor(alpha * n)`` smallest of the
    n positive weights and the ``floor(alpha * n)`` of the n negative weights that are closest to
    zero are dropped, and as many as both together are grown uniformly at random among all positions
    that did not survive. Active weights that are exactly zero count as positive.

    Drop and grow: as in `SET`. New weights start at zero, as in the authors' Keras code; their
    sparse code draws them from a normal distribution of standard deviation 0.1.

    Defaults: ``alpha=0.3``, constant, over the whole training, and ``update_every=391``, an epoch
    of CIFAR in batches of 128: pass ``update_every=len(loader)``. The paper spreads the weights
    over the layers by ``allocation="er"``.

    Cost: ``3 f_S`` per sample; no dense gradient is ever needed.

    Source: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", algorithm 2, https://arxiv.org/abs/1707.04780.
    """

    update_every: int = 391
    end_fraction: float = 1.0
    schedule: str = "constant"

    def drop_scores(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the rank of each weight among the active ones of its sign, from 0 to 1."""
        scores = torch.full(weight.shape, torch.inf, dtype=torch.float64, device=weight.device)
        for group in (mask & (weight >= 0), mask & (weight < 0)):
            values = weight.abs()[group]
            # A stable sort, so that of equal weights the earlier one ranks lower on every device.
            ranks = values.argsort(stable=True).argsort() + 1
            scores[group] = ranks.double() / max(1, len(values))
        return scores

    def drop_count(self, weight: Tensor, mask: Tensor, nnz: int, fraction: float) -> int:
        """Return `fraction` of the positive and of the negative weights, each rounded down."""
        positive = int((mask & (weight >= 0)).sum())
        return math.floor(fraction * positive) + math.floor(fraction * (nnz - positive))
