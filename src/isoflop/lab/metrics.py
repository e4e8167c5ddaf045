"""The measures by which tasks are judged."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measure of a trained model on test data.

    Attributes:
        name: Its key in summaries; in the metrics of an epoch it follows ``test_``.
        label: What figures call it, with its unit.
        unit: Its unit, or nothing.
        higher_is_better: Whether more of it is better.
    """

    name: str
    label: str
    unit: str = ""
    higher_is_better: bool = True

    def text(self, value: float | None) -> str:
        """Return name, value and unit, such as ``accuracy 93.10 %``."""
        return f"{self.name} {number(value)} {self.unit}".rstrip()

    def better(self, one: float, other: float) -> float:
        """Return the better of two values."""
        return max(one, other) if self.higher_is_better else min(one, other)


def number(value: float | None) -> str:
    """Return a result as text; None stands for infinite ones and NaN in files."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.2f}"


ACCURACY = Metric(name="accuracy", label="Test accuracy (%)", unit="%")
PERPLEXITY = Metric(name="perplexity", label="Test perplexity", higher_is_better=False)
AVERAGE_PRECISION = Metric(name="ap", label="Average precision (%)", unit="%")
MEAN_IOU = Metric(name="miou", label="Mean intersection over union (%)", unit="%")
