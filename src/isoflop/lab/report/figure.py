"""What a figure shows, apart from how it is drawn.

The same figures are drawn by Matplotlib for print (`isoflop.lab.report.static`) and by plotly for
reports (`isoflop.lab.report.interactive`).
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Okabe and Ito's palette, which the colour-blind can tell apart, with grey for black, so that every
# colour is seen on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
NEUTRAL = COLORS[-1]
COLOR_SCALE = "cividis"
STEPS = (1, 2, 5)
"""Numbers beside a logarithmic y axis, times powers of ten."""


def is_finite(*values: Any) -> bool:
    """Tell whether all values are numbers that can be drawn."""
    kinds = (int, float, np.integer, np.floating)
    return all(
        isinstance(v, kinds) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def color(group: int) -> str:
    """Return the colour of a group."""
    return COLORS[group % len(COLORS)]


def marker(group: int) -> int:
    """Return the number of a group's marker; groups that share a colour differ in it."""
    return (group + group // len(COLORS)) % len(COLORS)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something drawn in a panel.

    Attributes:
        label: Text of the legend.
        group: Number that decides colour and marker.
    """

    label: str
    group: int


@dataclass(frozen=True, kw_only=True)
class Points(Mark):
    """Separate points.

    Attributes:
        x: Positions.
        y: Heights.
        error: Half the length of each error bar.
        shift: How many points of print the marks are moved sideways, to lie side by side.
        values: What colours the points, in place of the group.
    """

    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    shift: float = 0.0
    values: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Line(Mark):
    """A line.

    Attributes:
        x: Positions.
        y: Heights.
        low: Lower end of the band around the line, and `high` the upper one.
        high: See `low`.
        dashed: Whether it is dashed.
        markers: Whether its points are marked.
        hollow: Whether the markers are.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    markers: bool = False
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars(Mark):
    """Bars beside one another.

    Attributes:
        names: What each bar is for.
        heights: How high it is.
    """

    names: Sequence[str]
    heights: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Image(Mark):
    """A matrix of percentages as an image.

    Attributes:
        values: Integers from 0 to 100, (rows, columns), the first row on top.
    """

    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Text above.
        x_label: Text below.
        y_label: Text beside.
        marks: What is drawn.
        x_log: Whether the x axis is logarithmic, with powers of ten for its numbers.
        y_log: Whether the y axis is logarithmic, with plain numbers.
        x_range: Ends of the x axis.
        y_range: Ends of the y axis.
    """

    title: str = ""
    x_label: str = ""
    y_label: str = ""
    marks: Sequence[Mark]
    x_log: bool = False
    y_log: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure.

    Attributes:
        name: Short name, fit for a file.
        title: Title.
        caption: What is seen, in a sentence or two.
        panels: The panels, row by row.
        columns: Panels of a row.
        value_label: What colours stand for, where marks have values.
        ratio: Height of a panel, divided by its width.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]
    columns: int = 1
    value_label: str = ""
    ratio: float = 0.75

    def wrapped(self, title: str) -> list[str]:
        """Return the title of a panel in lines that its width holds."""
        return textwrap.wrap(title, max(20, 88 // self.columns))
