"""Figures as plotly's plain data, to be drawn by the page they are put into.

Colours of text and grid, the number of columns and the height are left to the page, which knows
whether it is light or dark, wide or narrow.
"""

import base64
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

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star")


def interactive(figure: Figure) -> dict[str, Any]:
    """Return a figure as plain data: plotly's `data` and `layout`, `columns` and `ratio`."""
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": []}
    named: set[str] = set()
    colored = False
    for number, panel in enumerate(figure.panels, 1):
        suffix = "" if number == 1 else str(number)
        image = any(isinstance(mark, Image) for mark in panel.marks)
        x_axis: dict[str, Any] = {"title": {"text": _text(panel.x_label)}}
        y_axis: dict[str, Any] = {"title": {"text": _text(panel.y_label)}}
        if panel.x_log:
            x_axis |= {"type": "log", "exponentformat": "power", "nticks": 6}
        if panel.x_range is not None:
            low, high = panel.x_range
            ends = [math.log10(low), math.log10(high)] if panel.x_log else [low, high]
            x_axis["range"] = ends
        if panel.y_log:
            values = list(_log_ticks(panel))
            y_axis |= {"type": "log", "tickvals": values, "ticktext": [f"{v:g}" for v in values]}
        if panel.y_range is not None:
            low, high = panel.y_range
            ends = [math.log10(low), math.log10(high)] if panel.y_log else [low, high]
            y_axis["range"] = ends
        if image:
            x_axis |= {"showticklabels": False, "showgrid": False, "zeroline": False}
            y_axis |= {**x_axis, "title": y_axis["title"], "autorange": "reversed"}
        layout[f"xaxis{suffix}"] = {**x_axis, "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = {**y_axis, "anchor": f"x{suffix}"}
        layout["annotations"].append(
            {
                "text": "<br>".join(map(_text, figure.wrapped(panel.title))),
                "xref": f"x{suffix} domain",
                "yref": f"y{suffix} domain",
                "x": 0.5,
                "y": 1.0,
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
        for mark in panel.marks:
            for trace in _traces(mark):
                name = trace.get("name", "")
                if name and trace.get("showlegend", True):
                    trace |= {"legendgroup": name, "showlegend": name not in named}
                    named.add(name)
                colored |= "coloraxis" in trace or "coloraxis" in trace.get("marker", {})
                data.append({**trace, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
    if colored:
        layout["coloraxis"] = {
            "colorscale": COLOR_SCALE.capitalize(),
            "colorbar": {"title": {"text": _text(figure.value_label), "side": "right"}},
        }
        if any(isinstance(mark, Image) for panel in figure.panels for mark in panel.marks):
            layout["coloraxis"] |= {"cmin": 0, "cmax": 100}
    return {"data": data, "layout": layout, "columns": figure.columns, "ratio": figure.ratio}


def _traces(mark: Mark) -> Iterator[dict[str, Any]]:
    own, name = color(mark.group), _text(mark.label)
    symbol = SYMBOLS[marker(mark.group)]
    if isinstance(mark, Points):
        look: dict[str, Any] = {"symbol": symbol, "size": 9, "color": own}
        trace = {"type": "scatter", "mode": "markers", "x": _plain(mark.x), "y": _plain(mark.y)}
        trace["name"] = name
        if mark.error is not None:
            trace["error_y"] = {"type": "data", "array": _plain(mark.error), "color": own}
        if mark.values is not None:
            if name:
                # The legend has the shape; the colour means something else.
                yield {**trace, "x": [None], "y": [None], "marker": {**look, "color": NEUTRAL}}
            look = {"symbol": symbol, "size": 7, "color": _plain(mark.values)}
            # The ends of the scale are as dark and as light as pages are.
            look |= {"coloraxis": "coloraxis", "line": {"width": 0.7, "color": NEUTRAL}}
            trace |= {"showlegend": False, "legendgroup": name}
        yield {**trace, "marker": look}
    elif isinstance(mark, Line):
        if mark.low is not None and mark.high is not None:
            yield {
                "type": "scatter",
                "mode": "lines",
                "x": _plain([*mark.x, *reversed(mark.x)]),
                "y": _plain([*mark.high, *reversed(mark.low)]),
                "fill": "toself",
                "fillcolor": own,
                "opacity": 0.2,
                "line": {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
                "legendgroup": name,
            }
        yield {
            "type": "scatter",
            "mode": "lines+markers" if mark.markers else "lines",
            "x": _plain(mark.x),
            "y": _plain(mark.y),
            "line": {"color": own, "width": 2, "dash": "dash" if mark.dashed else "solid"},
            "marker": {"symbol": symbol + ("-open" if mark.hollow else ""), "size": 8},
            "name": name,
        }
    elif isinstance(mark, Bars):
        names = [_text(text) for text in mark.names]
        heights = _plain(mark.heights)
        yield {"type": "bar", "x": names, "y": heights, "marker": {"color": own}, "name": name}
    else:
        assert isinstance(mark, Image)
        yield {
            "type": "heatmap",
            "z": _packed(mark.values.astype(np.uint8)),
            "coloraxis": "coloraxis",
            "hovertemplate": "%{z} %<extra></extra>",
        }


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


def _plain(values: Any) -> list[float]:
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _packed(values: np.ndarray) -> dict[str, str]:
    """Return an array in plotly's binary form, a tenth as long as numbers in text."""
    rows, columns = values.shape
    data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"dtype": "u1", "bdata": data, "shape": f"{rows}, {columns}"}
