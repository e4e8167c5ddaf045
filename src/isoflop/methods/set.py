"""Sparse evolutionary training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.sparsity.method import METHODS, DropGrow


@METHODS.register("set")
@dataclass(frozen=True, kw_only=True)
class Set(DropGrow):
    """SET: drop the weights of smallest magnitude, grow at random.

    Formula: in each layer and at each update, drop the ``k = floor(f(t) * n_active)`` active
    weights of smallest ``|w|``, and grow k positions uniformly at random among all that did not
    survive.

    Drop and grow: a just-dropped weight may regrow in the same update, and then keeps its value and
    optimizer state. A genuinely new weight starts at exactly zero with zero optimizer state. The
    number of active weights of a layer never changes.

    Defaults: ``alpha=0.3``, ``update_every=100``, ``end_fraction=0.75``, cosine schedule, as RigL.

    Cost: ``3 f_S`` per sample; no dense gradient is ever needed.

    Source: Mocanu et al. 2018, https://arxiv.org/abs/1707.04780, in the form compared with RigL by
    Evci et al. 2020, section 3, https://arxiv.org/abs/1911.11134. The original instead drops a
    constant 30 % of the smallest positive and of the largest negative weights after every epoch,
    and draws new weights from a normal distribution.
    """

    def grow_scores(
        self,
        weight: Tensor,
        mask: Tensor,
        dense_grad: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Return a random ranking of all positions."""
        del mask, dense_grad
        # A permutation rather than uniform floats: it has no ties, which would favour low indices.
        ranking = torch.randperm(weight.numel(), generator=generator)
        return ranking.view(weight.shape).to(weight.device)
