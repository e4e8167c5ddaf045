"""Gradient signal preservation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.methods.base import METHODS
from isoflop.methods.prune_at_init import CalibratedPruning
from isoflop.methods.scoring import ScoringModel

if TYPE_CHECKING:
    from isoflop.sparsity.init_context import Loss


@METHODS.register("grasp")
@dataclass(frozen=True, kw_only=True)
class GraSP(CalibratedPruning):
    """GraSP: before training, keep the weights that the flow of gradients needs.

    Formula: removing a weight changes the squared norm of the gradient by ``-w * (H g)``, to first
    order, where g and H are gradient and Hessian of the loss of outputs divided by T. The weights
    with the highest ``w * (H g)`` of the whole network stay, negative ones included: no absolute
    value is taken.

    Differences: in the authors' code, the fully connected layers of the scored copy are drawn anew.

    Defaults: ``temperature=200``, one batch, ``min_per_output=1``. The authors take 10 samples of
    each class for CIFAR-10, 10 in two halves for CIFAR-100; each half is a batch here.

    Cost: a gradient and a Hessian-vector product of the dense network, ``9 f_D`` per scoring
    sample, then ``3 f_S`` per sample.

    Source: Wang et al. 2020, "Picking winning tickets before training by preserving gradient flow",
    section 3, https://arxiv.org/abs/2002.07376.

    Attributes:
        temperature: T, by which the model's output, a tensor, is divided.
    """

    temperature: float = 200.0

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.temperature
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise IsoflopError(f"temperature must be a positive number such as 200, not {value!r}.")

    def loss(self, loss: "Loss", outputs: Any, labels: Any) -> Tensor:
        """Return the loss of the outputs divided by the temperature."""
        return loss(outputs / self.temperature, labels)

    def scores(self, scoring_model: ScoringModel, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return ``w * (H g)``."""
        products = scoring_model.hessian_gradient_products(masks)
        return [w * product for w, product in zip(scoring_model.weights, products, strict=True)]
