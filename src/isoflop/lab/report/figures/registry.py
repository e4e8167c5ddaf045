"""Where the figures of a report are registered."""

from collections.abc import Callable, Sequence

from isoflop.lab.report.figure import Figure
from isoflop.lab.report.runs import Group
from isoflop.registry import Registry

FIGURES: Registry[Callable[[Sequence[Group]], list[Figure]]] = Registry("figure")
"""Functions that return the figures of groups, or raise `FigureError` if they hold no data for it."""
