"""Figures as plotly's plain data, to be drawn by the page they are put into.

Colours of text and grid, the number of columns and the height are left to the page, which knows
whether it is light or dark, wide or narrow.
"""

import html
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

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

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star")


def interactive(figure: Figure) -> dict[str, Any]:
    """Return a figure as plain data: plotly's `data` and `layout`, `columns` and `ratio`."""
    drawn = _plotly().Figure(layout={"template": "none"})
    named: set[str] = set()
    for number, panel in enumerate(figure.panels, 1):
        suffix = "" if number == 1 else str(number)
        x_axis, y_axis = _axes(panel)
        drawn.layout[f"xaxis{suffix}"] = {**x_axis, "anchor": f"y{suffix}"}
        drawn.layout[f"yaxis{suffix}"] = {**y_axis, "anchor": f"x{suffix}"}
        drawn.add_annotation(
            text="<br>".join(map(_text, figure.wrapped(panel.title))),
            xref=f"x{suffix} domain",
            yref=f"y{suffix} domain",
            x=0.5,
            y=1.0,
            yanchor="bottom",
            showarrow=False,
        )
        for mark in panel.marks:
            for trace in _traces(mark):
                if trace.name and trace.showlegend is not False:
                    trace.update(legendgroup=trace.name, showlegend=trace.name not in named)
                    named.add(trace.name)
                drawn.add_trace(trace.update(xaxis=f"x{suffix}", yaxis=f"y{suffix}"))
    marks = [mark for panel in figure.panels for mark in panel.marks]
    images = any(isinstance(mark, Image) for mark in marks)
    if images or any(isinstance(mark, Points) and mark.values is not None for mark in marks):
        drawn.update_layout(
            coloraxis={
                "colorscale": COLOR_SCALE.capitalize(),
                "colorbar": {"title": {"text": _text(figure.value_label), "side": "right"}},
                **({"cmin": 0, "cmax": 100} if images else {}),
            }
        )
    return {**drawn.to_plotly_json(), "columns": figure.columns, "ratio": figure.ratio}


def _plotly() -> Any:
    return require("plotly.graph_objects", "train")


def _axes(panel: Panel) -> tuple[dict[str, Any], dict[str, Any]]:
    x_axis: dict[str, Any] = {"title": {"text": _text(panel.x_label)}}
    y_axis: dict[str, Any] = {"title": {"text": _text(panel.y_label)}}
    if panel.x_log:
        x_axis |= {"type": "log", "exponentformat": "power", "nticks": 6}
    if panel.x_range is not None:
        x_axis["range"] = _ends(panel.x_range, panel.x_log)
    if panel.y_log:
        values = list(_log_ticks(panel))
        y_axis |= {"type": "log", "tickvals": values, "ticktext": [f"{v:g}" for v in values]}
    if panel.y_range is not None:
        y_axis["range"] = _ends(panel.y_range, panel.y_log)
    if any(isinstance(mark, Image) for mark in panel.marks):
        hidden = {"showticklabels": False, "showgrid": False, "zeroline": False}
        x_axis |= hidden
        y_axis |= {**hidden, "autorange": "reversed"}
    return x_axis, y_axis


def _ends(limits: tuple[float, float], log: bool) -> list[float]:
    """Return the ends of an axis, of which plotly wants exponents if it is logarithmic."""
    return [math.log10(value) if log else value for value in limits]


def _traces(mark: Mark) -> Iterator[Any]:
    go = _plotly()
    own, name = color(mark.group), _text(mark.label)
    symbol = SYMBOLS[marker(mark.group)]
    if isinstance(mark, Points):
        trace = go.Scatter(
            mode="markers",
            x=mark.x,
            y=mark.y,
            name=name,
            marker={"symbol": symbol, "size": 9, "color": own},
        )
        if mark.error is not None:
            trace.error_y = {"type": "data", "array": mark.error, "color": own}
        if mark.values is not None:
            if name:
                # The legend has the shape; the colour means something else.
                key = go.Scatter(trace)
                yield key.update(x=[None], y=[None], marker={"color": NEUTRAL}, error_y=None)
            trace.marker = {
                "symbol": symbol,
                "size": 7,
                "color": mark.values,
                "coloraxis": "coloraxis",
                # The ends of the scale are as dark and as light as pages are.
                "line": {"width": 0.7, "color": NEUTRAL},
            }
            trace.update(showlegend=False, legendgroup=name)
        yield trace
    elif isinstance(mark, Line):
        if mark.low is not None and mark.high is not None:
            yield go.Scatter(
                mode="lines",
                x=[*mark.x, *reversed(mark.x)],
                y=[*mark.high, *reversed(mark.low)],
                fill="toself",
                fillcolor=own,
                opacity=0.2,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        yield go.Scatter(
            mode="lines+markers" if mark.markers else "lines",
            x=mark.x,
            y=mark.y,
            line={"color": own, "width": 2, "dash": "dash" if mark.dashed else "solid"},
            marker={"symbol": symbol + ("-open" if mark.hollow else ""), "size": 8},
            name=name,
        )
    elif isinstance(mark, Bars):
        names = [_text(text) for text in mark.names]
        yield go.Bar(x=names, y=mark.heights, marker={"color": own}, name=name)
    else:
        assert isinstance(mark, Image)
        yield go.Heatmap(
            z=mark.values.astype(np.uint8),
            coloraxis="coloraxis",
            hovertemplate="%{z} %<extra></extra>",
        )


def _log_ticks(panel: Panel) -> Iterator[float]:
    """Yield the numbers beside a logarithmic y axis, from below the marks to above them."""
    heights = [y for mark in panel.marks if isinstance(mark, (Line, Points)) for y in mark.y]
    for exponent in range(
        math.floor(math.log10(min(heights))), math.ceil(math.log10(max(heights)))
    ):
        yield from (step * 10.0**exponent for step in STEPS)
    yield 10.0 ** math.ceil(math.log10(max(heights)))


def _text(text: str) -> str:
    """Return a text that plotly shows as it is, and does not read as markup."""
    return html.escape(text, quote=False)
