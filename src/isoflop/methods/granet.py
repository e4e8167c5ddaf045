"""Gradual pruning with zero-cost neuroregeneration."""

import math
from dataclasses import dataclass

from torch import Tensor

from isoflop.methods.base import METHODS, check_fraction
from isoflop.methods.pruning_schedule import CubicPruningSchedule
from isoflop.methods.rigl import RigL


@METHODS.register("granet")
@dataclass(frozen=True, kw_only=True)
class GraNet(RigL):
    """GraNet: prune little by little, and at each pruning replace the weakest weights by new ones.

    Formula: every ΔT steps, (a) while the pruning schedule lasts, the active weights of smallest
    ``|w|`` of the whole network are masked, by one threshold, as the cubic pruning schedule says
    (see `GMP`); (b) in each layer, the ``ceil(r(t) * n_active)`` active weights of smallest ``|w|``
    are dropped and as many of largest ``|dL/dw|`` are grown. r falls from `alpha` to `alpha_end` in
    half a cosine over the whole training: regeneration goes on after the pruning schedule.

    Budget: as for `GMP`. With a plan, the average MACs over all steps are those of the plan; the
    threshold is global, so what each layer has is known only as training goes, but the MACs of
    each step are those of the pruning schedule.

    Drop and grow: as in `RigL`. A weight that is masked by (a) can be grown by (b). Every output
    keeps at least one weight in (a).

    Defaults: ``initial_density=0.5``, the pruning schedule from 0 to 0.5 of the training,
    ``update_every=1000``, r from 0.5 to 0.005 (CIFAR in the authors' code). With ``per_layer=True``
    each layer is pruned alike (their ``GraNet_uniform``).

    Differences: in the authors' code the last pruning stops short of the final density; here the
    last one reaches it.

    Cost: ``3 f_S(t)`` per sample, on average what the budget says, and one dense gradient every ΔT
    steps.

    Source: Liu et al. 2021, "Sparse training via boosting pruning plasticity with
    neuroregeneration", https://arxiv.org/abs/2106.10404.

    Attributes:
        alpha_end: What r falls to.
        initial_density: Fraction of the weights that is active to begin with; 1 is dense-to-sparse.
        pruning_end: Fraction of the training after which the density stays.
        per_layer: Whether each layer is pruned alike, rather than all by one threshold.
    """

    alpha: float = 0.5
    update_every: int = 1000
    end_fraction: float = 1.0
    alpha_end: float = 0.005
    initial_density: float = 0.5
    pruning_end: float = 0.5
    per_layer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("alpha_end", self.alpha_end, 0.005)
        check_fraction("initial_density", self.initial_density, 0.5, positive=True)
        check_fraction("pruning_end", self.pruning_end, 0.5, positive=True)

    @property
    def pruning_schedule(self) -> CubicPruningSchedule:
        """The cubic pruning schedule."""
        return CubicPruningSchedule(
            initial_density=self.initial_density,
            begin=0.0,
            end=self.pruning_end,
            update_every=self.update_every,
            per_layer=self.per_layer,
        )

    def drop_fraction(self, step: int, total_steps: int) -> float:
        """Return r(t), between `alpha` and `alpha_end`."""
        progress = super().drop_fraction(step, total_steps) / self.alpha
        return self.alpha_end + (self.alpha - self.alpha_end) * progress

    def drop_count(self, weight: Tensor, mask: Tensor, nnz: int, fraction: float) -> int:
        """Return how many of the `nnz` active weights are dropped: the next integer above."""
        del weight, mask
        return math.ceil(fraction * nnz)
