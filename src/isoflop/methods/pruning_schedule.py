"""The cubic pruning schedule by which a dense or denser network is pruned during training."""

import math
from dataclasses import dataclass
from fractions import Fraction

from isoflop.errors import BudgetError


@dataclass(frozen=True, kw_only=True)
class CubicPruningSchedule:
    """How what a network costs falls from an initial to a final cost.

    The cost is pruned after optimizer steps ``t_0 + k ΔT``, ``k = 1 … n``, and is then
    ``C_f + (C_i - C_f) (1 - k / n)^3``; it stays C_i until the first and C_f after the last of
    these steps. t_0 and ``n ΔT`` are `begin` and ``end - begin`` of the training, rounded down to
    multiples of ΔT.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", section 3,
    https://arxiv.org/abs/1710.01878. They write the same of the sparsity. A cost is the number of
    weights, or, when a FLOP budget is given, what these weights cost.

    Attributes:
        initial_density: Fraction of the weights that is active to begin with.
        begin: Fraction of the training after which pruning begins.
        end: Fraction of the training after which it has ended.
        update_every: ΔT, optimizer steps between two prunings.
        per_layer: Whether each layer is pruned alike; otherwise the network as a whole, by one
            threshold.
    """

    initial_density: float
    begin: float
    end: float
    update_every: int
    per_layer: bool

    def _times(self, total_steps: int) -> tuple[int, int]:
        """Return t_0 and n."""
        first = math.floor(self.begin * total_steps / self.update_every)
        last = math.floor(self.end * total_steps / self.update_every)
        return first * self.update_every, last - first

    def check(self, total_steps: int) -> None:
        """Raise `BudgetError` unless there is time for one pruning at least."""
        if self._times(total_steps)[1] < 1:
            raise BudgetError(
                f"No pruning fits between {self.begin:g} and {self.end:g} of {total_steps} steps "
                f"with one every {self.update_every}. Use a smaller update_every, or train longer."
            )

    def due(self, step: int, total_steps: int) -> bool:
        """Return whether weights are pruned right after optimizer step number `step`."""
        first, count = self._times(total_steps)
        since = step - first
        return 0 < since <= count * self.update_every and since % self.update_every == 0

    def remaining(self, step: int, total_steps: int) -> Fraction:
        """Return what part of ``C_i - C_f`` is left after the pruning, if any, that follows `step`."""
        first, count = self._times(total_steps)
        done = min(max(step - first, 0) // self.update_every, count)
        return (1 - Fraction(done, count)) ** 3

    def mean_remaining(self, total_steps: int) -> Fraction:
        """Return the mean of `remaining` over the training, exactly.

        The first t_0 steps run at 1 and each pruning but the last is followed by ΔT steps, so the
        sum over all steps is ``t_0 + ΔT Σ_{k<n} (1 - k / n)^3 = t_0 + ΔT (n + 1)^2 / (4 n)``.
        """
        first, count = self._times(total_steps)
        total = first + self.update_every * Fraction((count + 1) ** 2, 4 * count)
        return total / total_steps

    def final_cost(self, initial: int, mean: int, total_steps: int) -> int:
        """Return the C_f with which the cost is `mean` on average over all steps.

        Args:
            initial: C_i.
            mean: The average wanted.
            total_steps: Optimizer steps of the whole training.

        Raises:
            BudgetError: The beginning costs more than the whole budget, or less than its average.
        """
        if initial < mean:
            raise BudgetError(
                f"The initial density {self.initial_density:g} costs {initial:,} MACs, less than "
                f"the average of {mean:,} that the plan allows, so nothing is left to prune. Use a "
                "larger initial_density."
            )
        share = self.mean_remaining(total_steps)
        final = round((mean - initial * share) / (1 - share)) if share < 1 else 0
        if final <= 0:
            largest = self.initial_density * float(Fraction(mean, initial) / share)
            raise BudgetError(
                f"While it is pruned from density {self.initial_density:g}, the network costs more "
                f"than the plan allows over the whole training. Use an initial_density below "
                f"{largest:.3g}, or a pruning_end below {self.end:g}."
            )
        return final

    def cost(self, initial: int, final: int, step: int, total_steps: int) -> int:
        """Return the cost after the pruning, if any, that follows `step`."""
        return final + round(self.remaining(step, total_steps) * (initial - final))
