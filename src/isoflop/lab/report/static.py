"""Figures drawn by Matplotlib, for print."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from isoflop.errors import IsoflopError
from isoflop.files import new_file, write_bytes
from isoflop.lab.report.figure import (
    COLOR_SCALE,
    NEUTRAL,
    STEPS,
    Bars,
    Figure,
    Image,
    Line,
    Mark,
    Panel,
    Points,
    color,
    marker,
)
from isoflop.optional import require
from isoflop.registry import known_name

Theme = Literal["light", "dark"]

MARKERS = "osD^vP*"
SUFFIXES = (".png", ".pdf", ".svg")

_COLORS: dict[str, dict[str, str]] = {
    "light": {"back": "#ffffff", "text": "#1f2328", "grid": "#dddddd"},
    "dark": {"back": "#14171c", "text": "#e6e8eb", "grid": "#3a3f47"},
}
_WIDTH = 7.0  # inches
_DPI = 200


def save_figure(figure: Figure, path: str | Path, *, theme: Theme = "light") -> None:
    """Draw a figure and save it.

    Args:
        figure: The figure.
        path: Where to save; the suffix decides the format (`.png`, `.pdf`, `.svg`).
        theme: For light or for dark pages.

    Raises:
        IsoflopError: The theme or the format is unknown, the folder does not exist, or it cannot be
            written.
    """
    colors = _COLORS[known_name(theme, _COLORS, "theme")]
    check_figure_path(path)
    with require("matplotlib", "train").rc_context(_settings(colors)):
        drawn = io.BytesIO()
        draw(figure).savefig(drawn, dpi=_DPI, format=Path(path).suffix[1:])
    write_bytes(Path(path), drawn.getvalue())


def check_figure_path(path: str | Path) -> None:
    """Raise `IsoflopError` if no figure can be saved at `path`."""
    path = new_file(path)
    if path.suffix not in SUFFIXES:
        raise IsoflopError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}.")
    require("matplotlib", "train")


def draw(figure: Figure) -> Any:
    """Return the figure as Matplotlib's, in the colours of the present settings."""
    # Without pyplot there is no global state and no need for a display.
    figure_class = require("matplotlib.figure", "train").Figure
    columns = min(figure.columns, len(figure.panels))
    rows = math.ceil(len(figure.panels) / columns)
    height = rows * (_WIDTH / columns * figure.ratio + 0.4) + 1.2
    drawn = figure_class(figsize=(_WIDTH, height), layout="constrained")
    grid = drawn.subplots(rows, columns, squeeze=False).flatten()
    names: dict[str, Any] = {}
    norm = _norm(figure)
    for axes, panel in zip(grid, figure.panels, strict=False):
        small = columns > 2
        _dress(axes, panel, small=small)
        axes.set_title("\n".join(figure.wrapped(panel.title)), fontsize=7 if small else 9)
        for mark in panel.marks:
            handle = _draw_mark(drawn, axes, mark, norm)
            if mark.label:
                names.setdefault(mark.label, handle)
        if any(isinstance(mark, Bars) for mark in panel.marks):
            axes.tick_params(axis="x", rotation=90, labelsize=6)
    for axes in grid[len(figure.panels) :]:
        axes.set_axis_off()
    if norm is not None:
        scale = require("matplotlib.cm", "train").ScalarMappable(norm, COLOR_SCALE)
        bar = drawn.colorbar(scale, ax=list(grid), label=figure.value_label, shrink=0.6)
        bar.outline.set_visible(False)
    drawn.suptitle(figure.title, fontsize=11)
    if names:
        drawn.legend(
            names.values(), names.keys(), loc="outside lower center", ncols=2, frameon=False
        )
    return drawn


def _norm(figure: Figure) -> Any:
    """Return the scale of the colours, one for all panels, or None if colours have no values."""
    normalize = require("matplotlib.colors", "train").Normalize
    marks = [mark for panel in figure.panels for mark in panel.marks]
    if any(isinstance(mark, Image) for mark in marks):
        return normalize(0, 100)
    values = [v for mark in marks if isinstance(mark, Points) for v in mark.values or ()]
    return normalize(min(values), max(values)) if values else None


def _settings(colors: Mapping[str, str]) -> dict[str, Any]:
    text = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"),
        colors["text"],
    )
    return {
        **text,
        "figure.facecolor": colors["back"],
        "axes.facecolor": colors["back"],
        "savefig.facecolor": colors["back"],
        "grid.color": colors["grid"],
        # Text from runs is text, whatever signs are in it.
        "text.parse_math": False,
        "font.size": 9,
    }


def _dress(axes: Any, panel: Panel, *, small: bool) -> None:
    axes.set_xlabel(panel.x_label, fontsize=7 if small else 9)
    axes.set_ylabel(panel.y_label, fontsize=7 if small else 9)
    axes.tick_params(labelsize=6 if small else 8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if any(isinstance(mark, Image) for mark in panel.marks):
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.grid(linewidth=0.6)
    axes.set_axisbelow(True)
    if panel.x_log:
        ticker = require("matplotlib.ticker", "train")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(_power_of_ten))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    if panel.y_log:
        ticker = require("matplotlib.ticker", "train")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=STEPS))
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    if panel.x_range is not None:
        axes.set_xlim(panel.x_range)
    if panel.y_range is not None:
        axes.set_ylim(panel.y_range)


def _draw_mark(drawn: Any, axes: Any, mark: Mark, norm: Any) -> Any:
    """Draw a mark and return what stands for it in the legend."""
    own, shape = color(mark.group), MARKERS[marker(mark.group)]
    if isinstance(mark, Points) and mark.values is not None:
        look = {"cmap": COLOR_SCALE, "norm": norm, "s": 16, "linewidths": 0.4}
        # The ends of the scale are as dark and as light as pages are.
        look["edgecolors"] = NEUTRAL
        axes.scatter(mark.x, mark.y, c=mark.values, marker=shape, **look)
        # The legend has the shape; the colour means something else.
        return axes.plot([], [], linestyle="none", color=NEUTRAL, marker=shape)[0]
    if isinstance(mark, Points):
        options: dict[str, Any] = {}
        if mark.shift:
            # Matplotlib leaves marks that are moved out of the limits that it chooses.
            offset = require("matplotlib.transforms", "train").offset_copy
            options["transform"] = offset(axes.transData, drawn, x=mark.shift, units="points")
        return axes.errorbar(
            mark.x,
            mark.y,
            yerr=mark.error,
            color=own,
            marker=shape,
            markersize=6,
            capsize=4,
            linestyle="none",
            **options,
        )
    if isinstance(mark, Line):
        if mark.low is not None and mark.high is not None:
            axes.fill_between(mark.x, mark.low, mark.high, color=own, alpha=0.18, linewidth=0)
        style = {"linestyle": "--" if mark.dashed else "-", "linewidth": 1.4}
        points = {"marker": shape, "markersize": 5} if mark.markers else {}
        if mark.hollow:
            points["markerfacecolor"] = "none"
        return axes.plot(mark.x, mark.y, color=own, **style, **points)[0]
    if isinstance(mark, Bars):
        bars = [m for m in axes.containers if hasattr(m, "patches")]
        width = 0.4
        places = [i + width * (len(bars) - 0.5) for i in range(len(mark.names))]
        axes.set_xticks(range(len(mark.names)), mark.names)
        return axes.bar(places, mark.heights, width=width, color=own)
    assert isinstance(mark, Image)
    look = {"aspect": "auto", "interpolation": "nearest"}
    return axes.imshow(mark.values, cmap=COLOR_SCALE, norm=norm, **look)


def _power_of_ten(value: float, _position: int) -> str:
    exponent = math.floor(math.log10(value))
    factor = value / 10**exponent
    power = "10" + str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return power if factor < 1.01 else f"{factor:.3g}×{power}"
