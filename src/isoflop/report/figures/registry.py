"""Where the figures of a report are registered."""

from collections.abc import Callable, Sequence

from isoflop.registry import Registry
from isoflop.report.figure import Figure
from isoflop.report.runs import Group

FIGURES: Registry[Callable[[Sequence[Group]], list[Figure]]] = Registry("figure")
"""Functions that return the figures of groups, or raise `FigureError` if they hold no data for it."""
