"""The trajectory of the number of weights over training, in exact integers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.errors import BudgetError
from isoflop.methods.pruning_schedule import CubicPruningSchedule
from isoflop.sparsity.allocation import Allocation, exact_counts
from isoflop.sparsity.budget_spec import BudgetSpec


@dataclass(frozen=True)
class PruningTrajectory:
    """A pruning schedule, applied to a network.

    Attributes:
        ramp: The pruning schedule.
        total_steps: Optimizer steps of the whole training.
        budget_spec: The masked weights.
        initial: Their numbers to begin with.
        final_ideal: Their numbers in the end, before rounding, if layers are pruned alike.
        initial_cost: What the initial numbers cost.
        final_cost: What the masks cost in the end.
    """

    pruning_schedule: CubicPruningSchedule
    total_steps: int
    budget_spec: BudgetSpec
    initial: list[int]
    final_ideal: list[float]
    initial_cost: int
    final_cost: int

    def cost(self, step: int) -> int:
        """Return what the masks cost after `step` optimizer steps, as the pruning schedule has it."""
        return self.pruning_schedule.cost(
            self.initial_cost, self.final_cost, step, self.total_steps
        )

    def counts(self, step: int, limits: Sequence[int]) -> list[int]:
        """Return each layer's number of weights after `step` steps, if all are pruned alike."""
        left = float(self.pruning_schedule.remaining(step, self.total_steps))
        ideal = [f + left * (i - f) for i, f in zip(self.initial, self.final_ideal, strict=True)]
        return self.budget_spec.nearest(ideal, self.cost(step), limits=limits)


def plan_trajectory(
    pruning_schedule: CubicPruningSchedule,
    budget_spec: BudgetSpec,
    counts: Sequence[int],
    allocation: Allocation,
    total_steps: int,
    *,
    on_average: bool,
) -> PruningTrajectory:
    """Solve for the trajectory that meets a budget.

    Args:
        pruning_schedule: How the number of weights falls.
        budget_spec: The masked weights.
        counts: The numbers of weights that the budget allows.
        allocation: How the initial density is spread over the layers.
        total_steps: Optimizer steps of the whole training.
        on_average: Whether the budget is the average over the training; otherwise it is met in
            the end.

    Raises:
        BudgetError: No trajectory meets the budget.
    """
    pruning_schedule.check(total_steps)
    density = pruning_schedule.initial_density
    total = max(len(budget_spec.sizes), math.floor(density * sum(budget_spec.sizes)))
    spread = exact_counts(budget_spec.shapes, allocation(budget_spec.shapes, density), total)
    initial = budget_spec.feasible(spread)
    budget, initial_cost = budget_spec.cost(counts), budget_spec.cost(initial)
    if not on_average and initial_cost < budget:
        raise BudgetError(
            f"The initial density {density:g} is lower than the final one: there is nothing to "
            "prune. Use a larger initial_density, or a higher sparsity."
        )
    final = pruning_schedule.final_cost(initial_cost, budget, total_steps) if on_average else budget
    # In the end every layer has its share of what the budget gives it.
    ideal = [n * final / budget for n in counts]
    least = budget_spec.feasible([1] * len(counts))
    if least == budget_spec.feasible(budget_spec.sizes) or final < budget_spec.cost(least):
        raise BudgetError(
            "The masks of this pattern cannot become as sparse as the pruning schedule wants. Use "
            "pattern='unstructured', a lower sparsity, or an earlier end of the pruning schedule."
        )
    return PruningTrajectory(
        pruning_schedule, total_steps, budget_spec, initial, ideal, initial_cost, final
    )
