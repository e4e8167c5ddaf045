import pytest

from isoflop.bench import plot
from isoflop.errors import IsoflopError


def result(kind, sparsity, seconds):
    return {
        "workload": {
            "kind": kind,
            "sparsity": sparsity,
            "model": "a:b",
            "input_shape": [1, 2],
            "layer": "linear",
            "inputs": 4,
            "outputs": 8,
            "batch": 2,
            "backward": False,
            "fixed_size": True,
            "threads": 2,
        },
        "machine": {"cpu": "a processor"},
        "seconds": seconds,
        "ratio_to_dense": {
            name: t / seconds["dense"] for name, t in seconds.items() if "dense" in seconds
        },
    }


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved = []
    save = plot._save
    monkeypatch.setattr(
        plot, "_save", lambda figure, out: (saved.append(figure), save(figure, out))
    )
    return saved


def lines(figure):
    figure.draw_without_rendering()
    (axes,) = figure.axes
    return {line.get_label(): line for line in axes.lines}


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_relative_time(tmp_path, figures, kind):
    results = [
        result(kind, 0.9, {"dense": 2.0, "dense_contiguous": 2.0, "isoflop": 2.5, "masked": 20.0}),
        result(kind, 0.5, {"dense": 1.0, "dense_contiguous": 1.0, "isoflop": 1.1}),
    ]
    plot.plot_relative_time(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    drawn = lines(figures[0])
    assert drawn["isoflop"].get_xydata().tolist() == [[50.0, 1.1], [90.0, 1.25]]
    assert drawn["PyTorch, zeros computed"].get_xydata().tolist() == [[90.0, 10.0]]
    assert "dense_contiguous" not in drawn
    expected = {
        "inference": {"paper: no sparse support": [19.5], "paper: DeepSparse": [3.5]},
        "training": {"paper: no sparse support": [10.6], "paper: CS-2": [1.30, 1.39, 2.82]},
    }
    for name, values in expected[kind].items():
        assert list(drawn[name].get_ydata()) == values


def test_speedup(tmp_path, figures):
    results = [
        result("matmul", 0.5, {"dense": 1.0, "masked": 2.0, "isoflop": 1.0, "sparselab": 4.0}),
        result("matmul", 0.75, {"dense": 1.0, "masked": 4.0, "isoflop": 1.0}),
    ]
    plot.plot_speedup(results, tmp_path / "figure.svg")
    drawn = lines(figures[0])
    assert drawn["isoflop"].get_xydata().tolist() == [[50.0, 2.0], [75.0, 4.0]]
    assert drawn["sparselab"].get_xydata().tolist() == [[50.0, 0.5]]
    ideal = drawn["ideal, 1 / (1 − sparsity)"].get_xydata()
    assert ideal[0].tolist() == [0.0, 1.0]
    assert ideal[-1].tolist() == [75.0, 4.0]


def test_styles_tell_contestants_apart():
    for place in range(3):
        assert len({style[place] for style in plot.STYLES.values()}) == len(plot.STYLES)


def test_nothing_to_draw(tmp_path):
    with pytest.raises(IsoflopError, match="relative to a dense model"):
        plot.plot_relative_time([result("inference", 0.5, {})], tmp_path / "a.png")
    with pytest.raises(IsoflopError, match="masked"):
        plot.plot_speedup([result("matmul", 0.5, {"isoflop": 1.0})], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
