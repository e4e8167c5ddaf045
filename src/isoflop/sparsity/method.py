"""What a sparse training method is: it scores weights and schedules updates, and nothing else.

Methods are frozen dataclasses without state. The sparsifier owns masks, randomness and the count of
steps; patterns turn scores into masks.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.registry import Registry
from isoflop.sparsity.schedules import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods; by itself, one whose masks never change."""

    masks_weights: ClassVar[bool] = True
    """Whether the method makes weights sparse at all."""

    needs_dense_grad: ClassVar[bool] = False
    """Whether updates need the gradient of all weights, masked ones included."""

    @property
    def name(self) -> str:
        """The registered name, or the class name of a method that is not registered."""
        known = (name for name, cls in METHODS.items() if cls is type(self))
        return next(known, type(self).__name__)

    @property
    def config(self) -> dict[str, Any]:
        """The options as plain data."""
        return dataclasses.asdict(self)

    def update_due(self, step: int, total_steps: int) -> bool:
        """Return whether the masks change right after optimizer step number `step` (from 1)."""
        del step, total_steps
        return False


METHODS: Registry[type[Method]] = Registry("method")


@dataclass(frozen=True, kw_only=True)
class DropGrow(Method, ABC):
    """Base of the methods that move a fixed number of weights about during training.

    At each update, and in each layer by itself, the ``k = floor(f(t) * n_active)`` active weights
    of lowest drop score are dropped, and the k positions of highest grow score become active. Any
    position outside the survivors can be grown, the just-dropped ones included. A weight that is
    dropped and grown in the same update was in effect never dropped: it keeps its value and its
    optimizer state. A weight that is new starts at exactly zero, with optimizer state zero.

    The optimizer step is taken first, the masks change after it. Updates follow optimizer steps
    ΔT, 2ΔT, … while ``t < end_fraction * total_steps``.

    Attributes:
        alpha: Fraction of the active weights that an update at step 0 would replace.
        update_every: ΔT, the number of optimizer steps between updates.
        end_fraction: Fraction of training after which the masks stay fixed.
        schedule: Registered name of the schedule that takes `alpha` down over time: ``"cosine"``,
            ``"linear"`` or ``"constant"``.
    """

    alpha: float = 0.3
    update_every: int = 100
    end_fraction: float = 0.75
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if not _is_number(self.alpha) or not 0 < self.alpha <= 1:
            raise IsoflopError(f"alpha must lie in (0, 1], such as 0.3, not {self.alpha!r}.")
        if not _is_integer(self.update_every) or self.update_every < 1:
            raise IsoflopError(
                "update_every is a number of optimizer steps: use a positive integer such as 100, "
                f"not {self.update_every!r}."
            )
        if not _is_number(self.end_fraction) or not 0 <= self.end_fraction <= 1:
            raise IsoflopError(
                f"end_fraction must lie in [0, 1], such as 0.75, not {self.end_fraction!r}."
            )
        SCHEDULES.get(self.schedule)

    def update_due(self, step: int, total_steps: int) -> bool:
        """Return whether the masks change right after optimizer step number `step` (from 1)."""
        in_time = 0 < step < self.end_fraction * total_steps
        return in_time and step % self.update_every == 0

    def drop_fraction(self, step: int, total_steps: int) -> float:
        """Return f(t), the fraction of active weights that an update after step `step` replaces."""
        schedule = SCHEDULES.get(self.schedule)
        return schedule(step, self.end_fraction * total_steps, self.alpha)

    def drop_scores(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Return what each active weight is worth; the lowest are dropped. Here ``|w|``."""
        del mask
        return weight.abs()

    @abstractmethod
    def grow_scores(
        self,
        weight: Tensor,
        mask: Tensor,
        dense_grad: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Return what activating each position is worth; the highest are grown.

        Args:
            weight: The weight, after the optimizer step; masked positions are zero.
            mask: Its present mask.
            dense_grad: Gradient of the last step at all positions, or None unless
                `needs_dense_grad`.
            generator: CPU generator for every random choice, so that these are the same whatever
                device trains.
        """


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
