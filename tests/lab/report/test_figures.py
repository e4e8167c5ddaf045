import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import isoflop.lab.report.figures
from isoflop.errors import FigureError
from isoflop.lab.report import FIGURES, group_runs, load_run
from isoflop.lab.report.figure import COLORS, Bars, Line, Points, color, marker
from isoflop.lab.report.figures.chosen import LARGEST, note, spread
from isoflop.lab.report.figures.degrees import distribution
from isoflop.lab.report.figures.mask_images import percentages
from isoflop.lab.report.figures.pareto import pareto_front

# Marks are of many kinds; a test knows of which.
drawn: Any = isoflop.lab.report.figures

WIDE = {"transform": "wide", "method": "rigl"}


def groups_of(*paths):
    return group_runs(map(load_run, paths))


def marks(figure, kind):
    return [mark for panel in figure.panels for mark in panel.marks if isinstance(mark, kind)]


def test_colours_and_markers_tell_groups_apart():
    looks = {(color(i), marker(i)) for i in range(len(COLORS) ** 2)}
    assert len(looks) == len(COLORS) ** 2


@pytest.mark.parametrize("name", FIGURES.names())
def test_every_figure_says_why_it_is_missing(name):
    with pytest.raises(FigureError, match=r"\.$"):
        FIGURES.get(name)([])


def test_accuracy_against_flops(make_run):
    runs = [make_run(f"d{i}", i, 90.0 + 2 * i) for i in range(2)]
    (figure,) = drawn.accuracy_against_flops(
        groups_of(*runs, make_run("w", 0, 95.0, sparsity=0.5, **WIDE))
    )
    dense, wide = marks(figure, Points)
    assert (dense.label, dense.y, dense.x) == ("Dense", [91.0], [10**9 + 0.5])
    assert dense.error == [pytest.approx(math.sqrt(2))]
    assert wide.error is None
    assert (dense.shift, wide.shift) == (-7.0, 7.0)  # equal FLOPs, side by side
    (panel,) = figure.panels
    assert panel.x_log
    low, high = panel.y_range
    assert low < 91 - math.sqrt(2)  # the bars are inside
    assert high > 95
    assert "1–2 seeds" in figure.caption


def test_results_differ_by_a_hundredth_at_least(make_run):
    (figure,) = drawn.accuracy_against_flops(groups_of(make_run("a", 0, 90.0)))
    assert figure.panels[0].y_range == pytest.approx((89.55, 90.45))
    assert "One seed" in figure.caption


def test_tasks_are_drawn_apart(make_run):
    groups = groups_of(make_run("a", 0, 90.0), make_run("b", 0, 70.0, recipe="cifar100"))
    for function in (drawn.accuracy_against_flops, drawn.training_curves):
        (figure,) = function(groups)
        assert {panel.title for panel in figure.panels} == {"digits", "cifar100"}


def test_accuracy_against_sparsity(make_run):
    groups = groups_of(
        make_run("dense", 0, 90.0),
        make_run("a", 0, 93.0, sparsity=0.75, **WIDE),
        make_run("b", 0, 92.0, sparsity=0.5, **WIDE),
        make_run("c", 0, 91.0, sparsity=0.5, pattern="2:4", **WIDE),
        make_run("d", 0, 96.0, sparsity=0.5, transform="wide", method="dense"),
        make_run("e", 0, 88.0, sparsity=0.5, transform="parallel", method="set"),
    )
    (figure,) = drawn.accuracy_against_sparsity(groups)
    panels = {panel.title.partition(": ")[2]: panel for panel in figure.panels}
    lines = {
        title: {m.label: (m.x, m.y) for m in panel.marks if isinstance(m, Line)}
        for title, panel in panels.items()
    }
    wide = ([50.0, 75.0], [92.0, 93.0])
    assert lines == {
        "families and methods": {"Wide, RigL": wide, "Parallel, SET": ([50.0], [88.0])},
        "structured against unstructured": {
            "Wide, RigL": wide,
            "Parallel, SET": ([50.0], [88.0]),
            "Wide, RigL, 2:4": ([50.0], [91.0]),
        },
        "sparse against dense": {"Wide, RigL": wide, "Wide, Dense": ([50.0], [96.0])},
    }
    for panel in figure.panels:
        point = panel.marks[0]
        assert (point.label, point.x, point.y) == ("Dense", [0.0], [90.0])


def test_accuracy_against_sparsity_without_sparse_runs(make_run):
    with pytest.raises(FigureError, match="No complete run is sparse"):
        drawn.accuracy_against_sparsity(groups_of(make_run("dense", 0, 90.0)))


def test_bands_are_confidence_intervals_of_three_seeds(make_run):
    runs = [make_run(str(i), i, accuracy) for i, accuracy in enumerate((90.0, 91.0, 95.0))]
    (figure,) = drawn.training_curves(groups_of(*runs))
    line = next(p for p in figure.panels if p.y_label == "Test accuracy (%)").marks[0]
    interval = scipy.stats.ttest_1samp([90.0, 91.0, 95.0], 0.0).confidence_interval(0.95)
    assert line.x == [1, 2]
    assert line.y[1] == 92.0
    assert (line.low[1], line.high[1]) == pytest.approx((interval.low, interval.high))
    (figure,) = drawn.training_curves(groups_of(*runs[:2]))
    assert all(line.low is None for line in marks(figure, Line))


def test_curves_of_runs_of_different_lengths_end_with_the_shorter(make_run):
    runs = [make_run(str(i), i, 90.0) for i in range(2)]
    (runs[1] / "summary.json").unlink()
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines()
    (runs[1] / "metrics.jsonl").write_text(lines[0])
    (figure,) = drawn.training_curves(groups_of(*runs))
    assert all(line.x == [1] for line in marks(figure, Line))


def test_mask_changes(make_run):
    (figure,) = drawn.mask_changes(groups_of(make_run("a", 0, 90.0, sparsity=0.5, **WIDE)))
    lines = {panel.y_label: panel.marks[0] for panel in figure.panels}
    first = lines["Distance to the first masks"]
    assert (first.x, first.y) == ([0, 8, 20], [0.0, 0.25, 0.25])
    explored = lines["Share of positions ever active"]
    assert explored.y == [0.2, 0.25, 0.25]
    churn = lines["Distance to the previous masks"]
    assert (churn.x, churn.y) == ([8, 20], [0.25, 0.0])


def test_measures_meet_the_accuracy_of_their_epoch(make_run):
    paths = [make_run(str(i), i, 90.0 + i, sparsity=0.5, **WIDE) for i in range(2)]
    groups = groups_of(*paths)
    (figure,) = drawn.measures_against_accuracy(groups)
    assert [panel.x_label for panel in figure.panels] == ["Δr", "Δr_imdb", "λ", "λ_imsg"]
    (mark,) = figure.panels[0].marks
    assert mark.x == [1.0, 2.0, 2.0, 3.0]
    assert mark.y == [89.0, 90.0, 90.0, 91.0]
    assert mark.values == [1, 2, 1, 2]
    (figure,) = drawn.measures_over_training(groups)
    line = figure.panels[0].marks[0]
    assert (line.x, line.y) == ([0, 10, 20], [0.5, 1.5, 2.5])


def test_the_latest_measurement_of_an_epoch_counts(make_run):
    path = make_run("a", 0, 90.0, sparsity=0.5, **WIDE)
    (path / "spectra.jsonl").write_text(
        "".join(
            f'{{"step": {step}, "network": {{"ramanujan_gap": {step}, "imdb": null}}}}\n'
            for step in (0, 3, 6)
        )
    )
    (figure,) = drawn.measures_against_accuracy(groups_of(path))
    (panel,) = figure.panels  # the other measures are unknown
    assert (panel.marks[0].x, panel.marks[0].y) == ([6], [89.0])


def test_pareto(make_run):
    groups = groups_of(make_run("a", 0, 90.0, sparsity=0.5, **WIDE))
    (figure,) = drawn.pareto_of_measures(groups)
    assert [panel.x_label for panel in figure.panels] == ["Δr", "Δr_imdb"]
    points, front = figure.panels[0].marks
    assert points.values == [89.0, 90.0]
    assert (front.x, front.y) == ([2.0], [2.0])


COORDINATE = st.integers(0, 5).map(float)


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1))
def test_the_front_is_what_nothing_dominates(points):
    def dominated(p):
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)

    assert set(pareto_front(points)) == {p for p in points if not dominated(p)}


def test_figures_of_masks(trained):
    groups = groups_of(*trained)
    (images,) = drawn.mask_images(groups)
    (degrees,) = drawn.degree_distributions(groups)
    run = groups[1].runs[0]
    assert len(images.panels) == len(degrees.panels) == len(run.masks)
    for panel in degrees.panels:
        assert [mark.label for mark in panel.marks] == [
            "inputs at first", "outputs at first", "inputs at last", "outputs at last"
        ]  # fmt: skip
        for mark in panel.marks:
            assert sum(mark.y) == pytest.approx(1.0)


def test_costs_by_layer(trained):
    groups = groups_of(*trained)
    _, figure = drawn.costs_by_layer(groups)
    plan = groups[1].runs[0].plan
    assert plan is not None
    density, macs, unmasked = marks(figure, Bars)
    assert density.heights == [layer.density for layer in plan.layers]
    assert sum(macs.heights) == plan.macs - plan.other_macs
    assert sum(unmasked.heights) == plan.unmasked_macs - plan.other_macs


def test_small_masks_are_drawn_exactly_and_large_ones_by_density():
    mask = np.zeros((3, 2, 1, 2), dtype=bool)
    mask[1, 0, 0, 1] = True
    assert percentages(mask).tolist() == [[0] * 4, [0, 100, 0, 0], [0] * 4]
    large = np.random.default_rng(0).random((200, 30, 3, 3)) < 0.3
    drawn = percentages(large)
    assert drawn.shape == (64, 64)
    assert drawn.mean() == pytest.approx(30, abs=1.5)
    half = np.zeros((128, 128), dtype=bool)
    half[:, ::2] = True
    assert (percentages(half) == 50).all()


def test_distribution_of_degrees():
    x, y = distribution(np.array([0.0, 0.51, 0.52, 1.0]))
    assert len(x) == len(y) == 20
    assert (y[0], y[10], y[-1]) == (0.25, 0.5, 0.25)


def test_layers_are_left_out_evenly():
    names = [str(i) for i in range(100)]
    chosen = spread(names)
    assert len(set(chosen)) == LARGEST
    assert (chosen[0], chosen[-1]) == ("0", "99")
    assert note(names) == " 24 of 100 layers are shown."
    assert spread(names[:24]) == names[:24]
    assert note(names[:24]) == ""
