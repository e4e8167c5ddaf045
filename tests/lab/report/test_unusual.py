"""Runs whose results are no numbers, or are missing, or few: everything is drawn as far as it goes."""

import json
import math

import plotly.graph_objects
import pytest
from tests.lab.report.conftest import MEASURES, write_lines

from isoflop.lab.report import (
    FIGURES,
    draw_all,
    format_table,
    group_runs,
    load_run,
    save_figure,
    write_report,
)
from isoflop.lab.report.correlation import correlate, correlate_runs
from isoflop.lab.report.interactive import interactive
from isoflop.lab.report.table import rows_of

WIDE = {"transform": "wide", "method": "rigl", "sparsity": 0.5}

BAD = {
    "inf": math.inf, "minus inf": -math.inf, "nan": math.nan, "none": None, "text": "high",
    "list": [1.0], "flag": True, "missing": ...,
}  # fmt: skip


def spoil(entry, name, value):
    if value is ...:
        del entry[name]
    else:
        entry[name] = value


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def spoil_lines(path, name, value, which=slice(None), inside=None):
    lines = lines_of(path)
    for line in lines[which]:
        spoil(line if inside is None else line[inside], name, value)
    write_lines(path, lines)


def spoil_summary(path, name, value):
    summary = json.loads((path / "summary.json").read_text())
    spoil(summary, name, value)
    (path / "summary.json").write_text(json.dumps(summary))


def report(runs, tmp_path, *, printed=False):
    """Draw everything, as a page and for print too if that is asked; return what `write_report` does."""
    groups = group_runs(map(load_run, runs))
    rows = rows_of(groups)
    format_table(rows)
    drawn, missing = draw_all(groups)
    for figure in drawn:
        data = json.loads(json.dumps(interactive(figure), allow_nan=False))
        if printed:
            plotly.graph_objects.Figure({k: data[k] for k in ("data", "layout")})
    if printed:
        return write_report(runs, tmp_path / "page.html", figures=tmp_path / "figures")
    problems = {
        str(run.path): run.problems for group in groups for run in group.runs if run.problems
    }
    return {"rows": rows, "missing": missing, "problems": problems}


def three_runs(make_run, **options):
    return [make_run(f"r{seed}", seed, 90.0 + seed, **WIDE, **options) for seed in range(3)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("accuracy", slice(1)),
        *((name, slice(3)) for name in ("accuracy", "training_flops", "seconds", "macs")),
    ],
)
def test_summaries(make_run, tmp_path, name, which, bad):
    runs = three_runs(make_run)
    dense = make_run("dense", 0, 80.0)
    for run in runs[which]:
        spoil_summary(run, name, BAD[bad])
    written = report([*runs, dense], tmp_path)
    assert written["rows"][-1]["mean"] == 80.0
    if name != "seconds" and name != "training_flops":
        assert str(runs[0]) in written["problems"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", [slice(1, None), slice(None)])
@pytest.mark.parametrize("name", ["test_accuracy", "train_loss", "epoch"])
def test_metrics(make_run, tmp_path, name, which, bad):
    runs = three_runs(make_run)
    for run in runs:
        spoil_lines(run / "metrics.jsonl", name, BAD[bad], which)
    report(runs, tmp_path)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", [slice(1, 2), slice(None)])
def test_spectra(make_run, tmp_path, which, bad):
    runs = three_runs(make_run)
    for run in runs:
        spoil_lines(run / "spectra.jsonl", MEASURES[0], BAD[bad], which, inside="network")
    report(runs, tmp_path)


@pytest.mark.parametrize("bad", BAD)
def test_changes_of_masks(make_run, tmp_path, bad):
    (run,) = three_runs(make_run)[:1]
    spoil_lines(run / "masks.jsonl", "layers", BAD[bad])
    written = report([run], tmp_path)
    assert "mask-changes" in written["missing"]


@pytest.mark.parametrize("accuracy", [0.0, 1e300])
def test_results_of_any_size(make_run, tmp_path, accuracy):
    runs = [make_run("a", 0, accuracy), make_run("b", 0, accuracy, **WIDE)]
    report(runs, tmp_path, printed=accuracy == 0)


@pytest.mark.parametrize("epochs", [0, 1])
def test_short_runs(make_run, tmp_path, epochs):
    runs = three_runs(make_run, epochs=epochs)
    for run in runs:
        write_lines(run / "spectra.jsonl", lines_of(run / "spectra.jsonl")[: epochs + 1])
    written = report(runs, tmp_path, printed=epochs == 1)
    assert ("curves" in written["missing"]) == (epochs == 0)


def test_runs_that_hold_nothing_yet(make_run, tmp_path):
    runs = three_runs(make_run)
    for run in runs:
        for path in run.iterdir():
            if path.name != "config.json":
                path.unlink()
    written = report(runs, tmp_path)
    assert written["rows"] == []
    assert written["missing"].keys() >= set(FIGURES.names())


def test_infinite_results_are_named(make_run, tmp_path):
    runs = three_runs(make_run)
    spoil_summary(runs[1], "accuracy", math.inf)
    spoil_lines(runs[1] / "metrics.jsonl", "test_accuracy", math.inf, slice(1, None))
    dense = make_run("dense", 0, 80.0)
    written = report([*runs, dense], tmp_path, printed=True)
    assert written["rows"][0]["mean"] == math.inf
    assert "not finite" in format_table(written["rows"])
    (problems,) = written["problems"].values()
    assert "accuracy is inf" in " ".join(problems)
    assert "after 1 of 2 epochs" in " ".join(problems)
    groups = group_runs(map(load_run, [*runs, dense]))
    (figure,) = FIGURES.get("accuracy-flops")(groups)
    assert "Without a finite result: Sparse Wide 50 % RigL." in figure.caption
    save_figure(figure, tmp_path / "figure.png")


def test_correlations_leave_out_nan():
    import numpy as np

    run = np.array(
        [[1.0, 1.0], [2.0, 3.0], [np.nan, 2.0], [3.0, 5.0], [4.0, np.inf], [5.0, np.nan]]
    )
    assert correlate([run], resamples=20).rho == pytest.approx(1.0)
    assert correlate_runs(run, resamples=20).rho == pytest.approx(1.0)
    assert correlate([np.full((4, 2), np.nan)], resamples=20).rho is None
