"""How often something is done during training."""

import re
from dataclasses import dataclass
from typing import Literal

from isoflop.errors import IsoflopError


@dataclass(frozen=True)
class Interval:
    """An interval of training, such as two epochs or 100 optimizer steps.

    Attributes:
        count: How many of the units.
        unit: ``"epoch"`` or ``"step"``.
    """

    count: int
    unit: Literal["epoch", "step"]

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """Return the interval that a text such as ``every=1epoch`` or ``every=100steps`` means.

        Raises:
            IsoflopError: The text means none.
        """
        match = re.fullmatch(r"every=([0-9]+)(epoch|step)s?", text)
        if match is None or int(match[1]) < 1:
            raise IsoflopError(
                f"{text!r} is no interval. Write every=1epoch, every=5epochs or every=100steps."
            )
        return cls(int(match[1]), "epoch" if match[2] == "epoch" else "step")

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Return whether an interval ends after optimizer step `step`, the first being 1."""
        length = self.count * (steps_per_epoch if self.unit == "epoch" else 1)
        return step % length == 0
