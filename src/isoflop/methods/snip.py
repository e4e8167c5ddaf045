"""Single-shot network pruning."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from isoflop.methods.base import METHODS
from isoflop.methods.prune_at_init import CalibratedPruning
from isoflop.methods.scoring import ScoringModel


@METHODS.register("snip")
@dataclass(frozen=True, kw_only=True)
class SNIP(CalibratedPruning):
    """SNIP: before training, keep the weights whose removal would change the loss the most.

    Formula: the score of a weight is ``|w * dL/dw|``, which is how strongly the loss reacts to a
    gate of value 1 on the weight. The highest scores of the whole network stay. Gradients are
    averaged over the batches before the absolute value is taken.

    Differences: in the original, biases are scored and masked too, and the weights are drawn anew
    after the masks are chosen. Here the scored weights are those that train.

    Defaults: one batch (about 100 samples in the paper), ``min_per_output=1``.

    Cost: ``3 f_D`` once per batch, then ``3 f_S`` per sample, as for static masks.

    Source: Lee et al. 2019, "SNIP: single-shot network pruning based on connection sensitivity",
    https://arxiv.org/abs/1810.02340.
    """

    def scores(self, scoring_model: ScoringModel, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return ``|w * dL/dw|`` at the masked weights."""
        gradients = scoring_model.gradients(masks)
        return [
            (weight.masked_fill(~mask, 0) * gradient).abs()
            for weight, mask, gradient in zip(scoring_model.weights, masks, gradients, strict=True)
        ]
