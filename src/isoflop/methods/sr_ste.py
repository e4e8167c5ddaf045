"""Sparse-refined straight-through estimator."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.methods.base import METHODS, Method

if TYPE_CHECKING:
    from isoflop.sparsity.init_context import InitContext
    from isoflop.sparsity.update import Update


@METHODS.register("sr_ste")
@dataclass(frozen=True, kw_only=True)
class SRSTE(Method):
    """SR-STE: train all weights, but compute with the largest of them only.

    Formula: forward and backward pass use ``w * m``, where m keeps the weights of largest ``|w|``
    that the pattern allows, such as N of every M. The optimizer changes all weights w by
    ``dL/d(w * m) + decay * (1 - m) * w``: the gradient passes straight through the mask, and masked
    weights are pulled to zero so that masks settle.

    Masked weights: between optimizer steps the weights of the model are ``w * m``, so masked ones
    are exactly zero in the forward pass, in `state_dict` and in copies, as in every method. The
    masked part of w is kept by the sparsifier (and in its `state_dict`), and put in place while the
    optimizer steps. The optimizer's state of masked weights is not zero: they are in training. The
    weights change in optimizer steps only, so masks that follow each step are those of masks
    recomputed in every forward pass.

    Drop and grow: a weight that becomes active has the value it was trained to, not zero.

    Defaults: ``decay=2e-4``. It is added once per optimizer step, after gradients are clipped. The
    method is meant for N:M patterns; with unstructured ones it is a top-k version of the same.

    Cost: ``2 f_S + f_D`` per sample, since every step computes the gradient of all weights.

    Source: Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
    scratch", section 4, https://arxiv.org/abs/2102.04010.

    Attributes:
        decay: λ, the pull on masked weights.
    """

    keeps_dense_weights: ClassVar[bool] = True

    decay: float = 2e-4

    def __post_init__(self) -> None:
        value = self.decay
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise IsoflopError(
                f"decay must be a number that is not negative, such as 2e-4, not {value!r}."
            )

    @property
    def masked_decay(self) -> float:
        """How strongly masked weights are pulled to zero."""
        return self.decay

    def initial_masks(self, context: "InitContext") -> list[Tensor]:
        """Return the masks of the largest weights."""
        scores = [weight.abs() for weight in context.weights()]
        return context.budget_spec.select(scores, context.counts)

    def update_due(self, step: int, total_steps: int) -> bool:
        """Return whether training is going on: masks follow the weights until its end."""
        return step <= total_steps

    def observes(self, step: int, total_steps: int) -> bool:
        """Return True: masked weights are in training."""
        del step, total_steps
        return True

    def update(self, update: "Update") -> None:
        """Choose the masks anew, by magnitude."""
        update.retopk()
