"""Foresight connection sensitivity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from isoflop.methods.base import METHODS
from isoflop.methods.iterative_snip import IterativeSNIP
from isoflop.methods.scoring import ScoringModel


@METHODS.register("force")
@dataclass(frozen=True, kw_only=True)
class FORCE(IterativeSNIP):
    """FORCE: in rounds, keep the weights that would matter in the pruned network.

    Formula: in round t of T, the ``D^(t/T)`` of the weights with the highest ``|w_0 * dL/dw|``
    stay, where w_0 are the weights before any was masked and the gradient is that of the network
    masked in round t - 1, at all positions. A weight that was pruned can return in a later round.

    Differences: the authors' code differentiates ``nll_loss`` of raw outputs, without a softmax;
    here it is the loss that is passed to `sparsify`, so ``loss=F.nll_loss`` reproduces theirs.

    Defaults: ``rounds=10``, exponential schedule, one batch, ``min_per_output=1``. The authors use
    1, 10, 20 and 40 batches for CIFAR-10, CIFAR-100, Tiny ImageNet and ImageNet.

    Cost: ``3 f_D`` per batch and round at most, then ``3 f_S`` per sample.

    Source: de Jorge et al. 2021, "Progressive skeletonization: trimming more fat from a network at
    initialization", section 4, https://arxiv.org/abs/2006.09081.
    """

    resurrects: ClassVar[bool] = True

    def scores(self, scoring_model: ScoringModel, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return ``|w_0 * dL/dw|``, the gradient taken in the masked network."""
        gradients = scoring_model.gradients(masks)
        return [(w * g).abs() for w, g in zip(scoring_model.weights, gradients, strict=True)]
