"""Base of the methods that move weights about during training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.methods.base import Method, check_fraction
from isoflop.methods.growth import Growth
from isoflop.methods.schedules import SCHEDULES

if TYPE_CHECKING:
    from isoflop.sparsity.update import Update


@dataclass(frozen=True, kw_only=True)
class DropGrow(Method):
    """Base of the methods that move a fixed number of weights about during training.

    At each update, and in each layer by itself, the ``k = floor(f(t) * n_active)`` active weights
    of lowest drop score are dropped, and the k positions of highest grow score become active. Any
    position outside the survivors can be grown, the just-dropped ones included. A weight that is
    dropped and grown in the same update was in effect never dropped: it keeps its value and its
    optimizer state. A weight that is new starts at exactly zero, with optimizer state zero.

    The optimizer step is taken first, the masks change after it. Updates follow optimizer steps
    ΔT, 2ΔT, … while ``t < end_fraction * total_steps``.

    A subclass says by `grow_by` what it grows by. Which gradients it needs, and when, follows.

    Attributes:
        alpha: Fraction of the active weights that an update at step 0 would replace.
        update_every: ΔT, the number of optimizer steps between updates.
        end_fraction: Fraction of training after which the masks stay fixed.
        schedule: Registered name of the schedule that takes `alpha` down over time: ``"cosine"``,
            ``"linear"`` or ``"constant"``.
    """

    grow_by: ClassVar[Growth]
    """What ranks the positions that can grow, such as `isoflop.methods.growth.RANDOM`."""

    alpha: float = 0.3
    update_every: int = 100
    end_fraction: float = 0.75
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if not hasattr(self, "grow_by"):
            raise TypeError(
                f"{type(self).__name__} does not say what it grows by. Set its class attribute grow_by "
                "to one of isoflop.methods.growth, such as GRADIENT."
            )
        check_fraction("alpha", self.alpha, 0.3, positive=True)
        every = self.update_every
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise IsoflopError(
                "update_every is a number of optimizer steps: use a positive integer such as 100, "
                f"not {self.update_every!r}."
            )
        check_fraction("end_fraction", self.end_fraction, 0.75)
        SCHEDULES.get(self.schedule)

    def rewire_due(self, step: int, total_steps: int) -> bool:
        """Return whether weights are dropped and grown right after optimizer step `step`."""
        in_time = 0 < step < self.end_fraction * total_steps
        return in_time and step % self.update_every == 0

    def update_due(self, step: int, total_steps: int) -> bool:
        """Return whether the masks change right after optimizer step number `step` (from 1)."""
        return self.rewire_due(step, total_steps) or super().update_due(step, total_steps)

    def idle(self, counts: Sequence[int], total_steps: int) -> str:
        """Return why no weight is ever dropped and grown, or nothing."""
        every, end = self.update_every, self.end_fraction * total_steps
        if self.pruning_schedule is not None:  # which prunes once at least
            return ""
        if not self.rewire_due(every, total_steps):
            return (
                f"the first update would follow step {every} (update_every), and updates end before step "
                f"{end:g} (end_fraction={self.end_fraction:g} of {total_steps} steps). Use a smaller "
                "update_every, or train longer"
            )
        fraction = self.drop_fraction(every, total_steps)
        if fraction * max(counts) < 1:
            return (
                f"the first update moves {fraction:.3g} of a layer's weights (alpha={self.alpha:g}), "
                f"which is less than one of {max(counts):,}. Use a larger alpha, or train longer"
            )
        return ""

    def drop_fraction(self, step: int, total_steps: int) -> float:
        """Return f(t), the fraction of active weights that an update after step `step` replaces."""
        schedule = SCHEDULES.get(self.schedule)
        return schedule(step, self.end_fraction * total_steps, self.alpha)

    def drop_scores(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return what each active weight is worth; the lowest are dropped. Here ``|w|``."""
        del mask
        return weight.abs()

    def drop_count(self, weight: Tensor, mask: Tensor, nnz: int, fraction: float) -> int:
        """Return how many of the `nnz` active weights are dropped."""
        del weight, mask
        return math.floor(fraction * nnz)

    @property
    def remembers(self) -> bool:
        """Whether the method needs what was remembered of the gradients of all steps."""
        return self.grow_by.gradients == "all"

    def observes(self, step: int, total_steps: int) -> bool:
        """Return whether step number `step` (from 1) computes a gradient that growth needs."""
        if self.grow_by.gradients != "all":
            return self.grow_by.gradients == "last" and self.rewire_due(step, total_steps)
        too_late = math.ceil(self.end_fraction * total_steps)
        return step <= (too_late - 1) // self.update_every * self.update_every

    def largest_growth(self, nnz: int, step: int, total_steps: int) -> int | None:
        """Return how many weights are dropped, however it is rounded, where the last gradient decides."""
        if self.grow_by.gradients != "last":
            return None
        return min(nnz, math.floor(self.drop_fraction(step, total_steps) * nnz) + 1)

    def remember(self, memory: Tensor | None, dense_grad: Tensor) -> Tensor:
        """Return what to remember of a finite gradient of all positions; here the gradient."""
        del memory
        return dense_grad

    def update(self, update: "Update") -> None:
        """Prune as the pruning schedule says, if there is one, then drop and grow."""
        super().update(update)
        if self.rewire_due(update.step, update.total_steps):
            update.drop_and_grow(self)

    def grow_scores(
        self,
        weight: Tensor,
        mask: Tensor,
        memory: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Return what activating each position is worth; the highest are grown.

        Args:
            weight: The weight, after the optimizer step; masked positions are zero.
            mask: Its present mask.
            memory: What `remember` returned last; None if the method observes nothing.
            generator: CPU generator for every random choice.
        """
        del mask
        return self.grow_by.scores(weight, memory, generator)

    def grow_share(self, mask: Tensor, memory: Tensor | None) -> float | None:
        """Return what part of all growth this layer deserves, up to a common factor.

        None, the default: each layer grows as many weights as it dropped.
        """
        del mask, memory
        return None
