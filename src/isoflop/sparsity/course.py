"""The course of the number of weights over training, in exact integers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.errors import BudgetError
from isoflop.sparsity.allocation import Allocation, exact_counts
from isoflop.sparsity.layout import Layout
from isoflop.sparsity.ramp import Ramp


@dataclass(frozen=True)
class Course:
    """A ramp, applied to a network.

    Attributes:
        ramp: The ramp.
        total_steps: Optimizer steps of the whole training.
        layout: The masked weights.
        initial: Their numbers to begin with.
        final_ideal: Their numbers in the end, before rounding, if layers are pruned alike.
        initial_cost: What the initial numbers cost.
        final_cost: What the masks cost in the end.
    """

    ramp: Ramp
    total_steps: int
    layout: Layout
    initial: list[int]
    final_ideal: list[float]
    initial_cost: int
    final_cost: int

    def cost(self, step: int) -> int:
        """Return what the masks cost after `step` optimizer steps, as the ramp has it."""
        return self.ramp.cost(self.initial_cost, self.final_cost, step, self.total_steps)

    def counts(self, step: int, limits: Sequence[int]) -> list[int]:
        """Return each layer's number of weights after `step` steps, if all are pruned alike."""
        left = float(self.ramp.remaining(step, self.total_steps))
        ideal = [f + left * (i - f) for i, f in zip(self.initial, self.final_ideal, strict=True)]
        return self.layout.nearest(ideal, self.cost(step), limits=limits)


def plan_course(
    ramp: Ramp,
    layout: Layout,
    counts: Sequence[int],
    allocation: Allocation,
    total_steps: int,
    *,
    on_average: bool,
) -> Course:
    """Solve for the course that meets a budget.

    Args:
        ramp: The ramp.
        layout: The masked weights.
        counts: The numbers of weights that the budget allows.
        allocation: How the initial density is spread over the layers.
        total_steps: Optimizer steps of the whole training.
        on_average: Whether the budget is the average over the training; otherwise it is met in
            the end.

    Raises:
        BudgetError: No course meets the budget.
    """
    ramp.check(total_steps)
    density = ramp.initial_density
    total = max(len(layout.sizes), math.floor(density * sum(layout.sizes)))
    spread = exact_counts(layout.shapes, allocation(layout.shapes, density), total)
    initial = layout.feasible(spread)
    budget, initial_cost = layout.cost(counts), layout.cost(initial)
    if not on_average and initial_cost < budget:
        raise BudgetError(
            f"The initial density {density:g} is lower than the final one: there is nothing to "
            "prune. Use a larger initial_density, or a higher sparsity."
        )
    final = ramp.final_cost(initial_cost, budget, total_steps) if on_average else budget
    # In the end every layer has its share of what the budget gives it.
    ideal = [n * final / budget for n in counts]
    least = layout.feasible([1] * len(counts))
    if least == layout.feasible(layout.sizes) or final < layout.cost(least):
        raise BudgetError(
            "The masks of this pattern cannot become as sparse as the ramp wants. Use "
            "pattern='unstructured', a lower sparsity, or an earlier end of the ramp."
        )
    return Course(ramp, total_steps, layout, initial, ideal, initial_cost, final)
