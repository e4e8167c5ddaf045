import pytest

import isoflop
from isoflop.errors import RunDirectoryError
from isoflop.report import accuracy_against_training_flops, summary_table
from isoflop.report.figure1 import COLORS, MARKERS, _draw
from isoflop.training import train


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figure_from_run_directories_alone(tiny_recipe, tmp_path, suffix):
    recipe = tiny_recipe.replace(epochs=1)
    runs = [tmp_path / "dense0", tmp_path / "dense1", tmp_path / "wide"]
    train(recipe, runs[0], quiet=True)
    train(recipe, runs[1], seed=1, quiet=True)
    wide = isoflop.SparseWide(sparsity=0.5)
    train(recipe, runs[2], transform=wide, method="static", quiet=True)
    out = tmp_path / f"figure.{suffix}"
    accuracy_against_training_flops(runs, out)
    content = out.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])
    assert len(summary_table(runs)) == 2


def test_no_runs(tmp_path):
    with pytest.raises(RunDirectoryError, match="no runs"):
        accuracy_against_training_flops([], tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_every_group_is_a_mark_of_its_own_inside_the_axes():
    rows = [
        {
            "label": f"group {i}",
            "recipe": "digits",
            "runs": 3,
            "accuracy_mean": 90.0 + i,
            "accuracy_std": 2.0 if i else None,
            "training_flops": 1e11 if i < 3 else 3e11,
        }
        for i in range(5)
    ]
    figure = _draw(rows, None)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert "digits" in axes.get_title()
    assert "3 seeds" in axes.get_title()
    lines = [line for line in axes.lines if line.get_marker() in MARKERS]
    assert [line.get_color() for line in lines] == list(COLORS[:5])
    frame = axes.get_window_extent()
    places = [line.get_transform().transform(line.get_xydata())[0] for line in lines]
    for place in places:
        assert frame.contains(*place)
    assert len({round(x) for x, _ in places[:3]}) == 3  # equal FLOPs, side by side
    low, high = axes.get_ylim()
    assert low < 89  # the longest bars are inside
    assert high > 96


def test_single_run():
    row = {"label": "one", "recipe": "r", "runs": 1, "accuracy_mean": 90.0, "accuracy_std": None}
    figure = _draw([{**row, "training_flops": 1e15}], "My title")
    figure.draw_without_rendering()
    assert figure.axes[0].get_title() == "My title"
