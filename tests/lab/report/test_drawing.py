"""Both ways of drawing draw every figure."""

import json

import numpy as np
import plotly.graph_objects
import pytest

from isoflop.errors import IsoflopError
from isoflop.lab.report import draw_all, group_runs, load_run, save_figure
from isoflop.lab.report.figure import Figure, Image, Line, Panel, Points
from isoflop.lab.report.interactive import interactive
from isoflop.lab.report.static import draw

HOSTILE = '<b>$x_1$</b> & <a href="javascript:1">%{y}</a>'


@pytest.fixture(scope="module")
def figures(trained):
    drawn, missing = draw_all(group_runs(map(load_run, trained)))
    assert missing.keys() == {"relative-times", "speed-ups"}
    return {figure.name: figure for figure in drawn}


def simple(**options):
    line = Line(label=HOSTILE, group=0, x=[1, 2, 3], y=[3, 1, 2], low=[2, 0, 1], high=[4, 2, 3])
    colored = Points(label="c", group=1, x=[1, 2], y=[1, 2], values=[5.0, 7.0])
    panels = [Panel(title=HOSTILE, marks=[line]), Panel(title="two", marks=[colored])]
    return Figure(name="f", title=HOSTILE, caption="", panels=panels, columns=2, **options)


def test_all_figures_are_drawn_by_matplotlib(figures, tmp_path):
    for name, figure in figures.items():
        for theme in ("light", "dark"):
            save_figure(figure, tmp_path / f"{name}-{theme}.png", theme=theme)
        light, dark = (tmp_path / f"{name}-{theme}.png" for theme in ("light", "dark"))
        assert light.read_bytes().startswith(b"\x89PNG")
        assert light.read_bytes() != dark.read_bytes()


def test_vector_formats(tmp_path):
    save_figure(simple(), tmp_path / "f.svg")
    assert (tmp_path / "f.svg").read_bytes().startswith(b"<?xml")
    save_figure(simple(), tmp_path / "f.pdf")
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("path", "theme", "message"),
    [("f.gif", "light", "png"), ("absent/f.png", "light", "no folder"), ("f.png", "x", "theme")],
)
def test_what_cannot_be_saved(tmp_path, path, theme, message):
    with pytest.raises(IsoflopError, match=message):
        save_figure(simple(), tmp_path / path, theme=theme)
    assert list(tmp_path.iterdir()) == []


def test_points_and_bars_lie_inside_the_axes(figures):
    drawn = draw(figures["accuracy-flops"])
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    places = [line.get_transform().transform(line.get_xydata())[0] for line in axes.lines]
    frame = axes.get_window_extent()
    assert len(places) >= 2
    for place in places:
        assert frame.contains(*place)
    assert len({round(x) for x, _ in places[:2]}) == 2  # side by side


def test_one_scale_of_colours():
    drawn = draw(simple(value_label="Epoch"))
    (scatter,) = drawn.axes[1].collections
    assert (scatter.norm.vmin, scatter.norm.vmax) == (5.0, 7.0)
    assert drawn.axes[2].get_ylabel() == "Epoch"


def test_all_figures_are_valid_for_plotly(figures):
    for figure in figures.values():
        found = interactive(figure)
        json.dumps(found, allow_nan=False)
        plotly.graph_objects.Figure(data=found["data"], layout=found["layout"])  # checks names
        assert len(found["layout"]["annotations"]) == len(figure.panels)
        axes = {trace["xaxis"] for trace in found["data"]}
        assert len(axes) == len(figure.panels)


def test_markup_in_names_is_text():
    text = json.dumps(interactive(simple()))
    assert "<a" not in text
    assert "<b>" not in text
    assert "&lt;b&gt;$x_1$" in text


def test_a_name_stands_once_in_the_legend(figures):
    for figure in figures.values():
        shown = [
            trace["name"]
            for trace in interactive(figure)["data"]
            if trace.get("name") and trace.get("showlegend", True)
        ]
        assert len(shown) == len(set(shown)), figure.name


def test_images_are_packed():
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    figure = Figure(
        name="f",
        title="",
        caption="",
        panels=[Panel(marks=[Image(label="", group=0, values=values)])],
    )
    (trace,) = interactive(figure)["data"]
    assert trace["z"] == {"dtype": "u1", "bdata": "AAECAwQF", "shape": "2, 3"}
