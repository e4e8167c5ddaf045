"""Gradual magnitude pruning."""

from dataclasses import dataclass

from isoflop.methods.base import METHODS, Method, check_count, check_fraction
from isoflop.methods.pruning_schedule import CubicPruningSchedule


@METHODS.register("gmp")
@dataclass(frozen=True, kw_only=True)
class GMP(Method):
    """GMP: train densely first, and prune the smallest weights of each layer little by little.

    Formula: every ΔT steps between `pruning_begin` and `pruning_end` of the training, the active
    weights of smallest ``|w|`` in each layer are masked until ``s_f + (s_i - s_f) (1 - t)^3`` of
    the layer is sparse, where t runs from 0 to 1, s_i is ``1 - initial_density`` and s_f the final
    sparsity.

    Budget: a plain sparsity is the final one. With a plan, what the plan allows is the
    average over all training steps: the final sparsity is higher, and solved from the exact mean of
    the pruning schedule. The pruning schedule then runs in MACs, and each layer's number of weights
    at each step is an integer such that their MACs are those of the pruning schedule (see
    `isoflop.methods.pruning_schedule`).

    Drop and grow: nothing grows. A pruned weight stays pruned.

    Defaults: dense to begin with, from 0 to 0.5 of the training, ``update_every=100``. An enlarged
    model costs several times the dense one in the beginning, which the rest of the training must
    make up for: at 90 % sparsity, use a smaller `pruning_end` or `initial_density`. The error says which.

    Cost: ``3 f_S(t)`` per sample, on average what the budget says.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", https://arxiv.org/abs/1710.01878.

    Attributes:
        initial_density: Fraction of the weights that is active to begin with.
        pruning_begin: Fraction of the training after which pruning begins.
        pruning_end: Fraction of the training after which the masks stay fixed.
        update_every: ΔT, optimizer steps between two prunings.
    """

    initial_density: float = 1.0
    pruning_begin: float = 0.0
    pruning_end: float = 0.5
    update_every: int = 100

    def __post_init__(self) -> None:
        check_fraction("initial_density", self.initial_density, 1.0, positive=True)
        check_fraction("pruning_end", self.pruning_end, 0.5, positive=True)
        check_fraction("pruning_begin", self.pruning_begin, 0.0)
        check_count("update_every", self.update_every, "a number of optimizer steps")

    @property
    def pruning_schedule(self) -> CubicPruningSchedule:
        """The cubic pruning schedule, each layer by itself."""
        return CubicPruningSchedule(
            initial_density=self.initial_density,
            begin=self.pruning_begin,
            end=self.pruning_end,
            update_every=self.update_every,
            per_layer=True,
        )
