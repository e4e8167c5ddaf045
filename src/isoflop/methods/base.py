"""What a sparse training method is: it scores weights and schedules updates, and nothing else.

Methods are frozen dataclasses without state. The sparsifier owns masks, randomness, memory and the
count of steps; patterns turn scores into masks.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.methods.pruning_schedule import CubicPruningSchedule
from isoflop.registry import Registry

if TYPE_CHECKING:
    from isoflop.sparsity.init_context import InitContext
    from isoflop.sparsity.update import Update


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods; by itself, one whose random masks never change."""

    masks_weights: ClassVar[bool] = True
    """Whether the method makes weights sparse at all."""

    keeps_dense_weights: ClassVar[bool] = False
    """Whether masked weights go on training out of sight, and masks follow them at every step."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Arguments of `sparsify` that the initial masks are computed from."""

    @property
    def name(self) -> str:
        """The registered name, or the class name of a method that is not registered."""
        known = (name for name, cls in METHODS.items() if cls is type(self))
        return next(known, type(self).__name__)

    @property
    def config(self) -> dict[str, Any]:
        """The options as plain data."""
        return dataclasses.asdict(self)

    @property
    def remembers(self) -> bool:
        """Whether what `remember` returns is kept from step to step, rather than for one step."""
        return False

    @property
    def masked_decay(self) -> float:
        """How strongly masked weights are pulled to zero, where they go on training."""
        return 0.0

    @property
    def pruning_schedule(self) -> CubicPruningSchedule | None:
        """How the number of weights falls during training; None if it stays."""
        return None

    @property
    def changes_masks(self) -> bool:
        """Whether the masks are made to change during training."""
        return self.pruning_schedule is not None or type(self).update_due is not Method.update_due

    def idle(self, counts: Sequence[int], total_steps: int) -> str:
        """Return why the masks never change, though the method is made to change them; or nothing.

        Args:
            counts: Active weights of each masked weight to begin with.
            total_steps: Optimizer steps of the whole training.
        """
        del counts
        if not self.changes_masks or any(
            self.update_due(step, total_steps) for step in range(1, total_steps + 1)
        ):
            return ""
        return f"none of the {total_steps} steps is followed by an update"

    def initial_masks(self, context: "InitContext") -> Sequence[Tensor]:
        """Return the mask of every weight to begin with; here a random one of the given count."""
        return context.random(context.counts)

    def update_due(self, step: int, total_steps: int) -> bool:
        """Return whether the masks change right after optimizer step number `step` (from 1)."""
        return self.pruning_schedule is not None and self.pruning_schedule.due(step, total_steps)

    def observes(self, step: int, total_steps: int) -> bool:
        """Return whether step number `step` (from 1) computes the gradient of masked weights."""
        del step, total_steps
        return False

    def largest_growth(self, nnz: int, step: int, total_steps: int) -> int | None:
        """Return how many weights a layer of `nnz` active weights can grow at most after `step`.

        A method says so if a step that it observes needs the largest gradients of each layer only:
        it grows as many weights as it drops, at the positions of largest ``|remember(None, dL/dw)|``,
        and `remembers` nothing. Compressed storage then keeps that many gradients. Here None: all
        gradients are needed, and compressed storage is refused.

        Args:
            nnz: Active weights before the step; a pruning schedule may take some away before others grow.
            step: Number of the step, from 1.
            total_steps: Optimizer steps of the whole training.
        """
        del nnz, step, total_steps
        return None

    def remember(self, memory: Tensor | None, dense_grad: Tensor) -> Tensor | None:
        """Return what to remember of a finite gradient of all positions; here nothing.

        Args:
            memory: What the last call returned for this weight, or None.
            dense_grad: The gradient of the step at all positions; may be kept.
        """
        del memory, dense_grad
        return None

    def update(self, update: "Update") -> None:
        """Change the masks; called when `update_due`. Here the pruning schedule prunes them."""
        update.prune()


METHODS: Registry[type[Method]] = Registry("method", "isoflop.methods")


def check_fraction(name: str, value: Any, example: float, *, positive: bool = False) -> None:
    """Raise unless `value` is a number in [0, 1], or in (0, 1] if it must be `positive`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1 or (positive and value == 0):
        interval = "(0, 1]" if positive else "[0, 1]"
        raise IsoflopError(f"{name} must lie in {interval}, such as {example}, not {value!r}.")


def check_count(name: str, value: object, meaning: str, *, minimum: int = 1) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        kind = "a positive integer" if minimum else "an integer that is not negative"
        raise IsoflopError(f"{name} is {meaning}: use {kind}, not {value!r}.")
