import json

import pytest

from isoflop.errors import FigureError, IsoflopError
from isoflop.lab.bench.contestant import CONTESTANTS
from isoflop.lab.report import write_report
from isoflop.lab.report.figure import color, marker
from isoflop.lab.report.figures.speed import LOOKS, read_bench, relative_times, speed_ups
from isoflop.lab.report.interactive import interactive
from isoflop.lab.report.static import draw


def result(kind, sparsity, seconds):
    workload = {
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
    }
    dense = seconds.get("dense")
    ratios = {name: s / dense for name, s in seconds.items()} if dense else {}
    machine = {"cpu": "a processor"}
    return {"workload": workload, "machine": machine, "seconds": seconds, "ratio_to_dense": ratios}


INFERENCE = [
    result("inference", s, {"dense": 2.0, "dense_contiguous": 2.0, "isoflop": ours, "masked": 9.0})
    for s, ours in ((0.9, 3.0), (0.5, 2.2))
]
TRAINING = [result("training", 0.5, {"dense": 2.0, "isoflop": 3.0})]
MATMUL = result("matmul", 0.75, {"dense": 1.0, "masked": 4.0, "isoflop": 1.25, "torch_csr": 8.0})


def lines(panel):
    return {line.label: (list(line.x), list(line.y)) for line in panel.marks}


def test_relative_times():
    (figure,) = relative_times([INFERENCE, [MATMUL], TRAINING])
    inference, training = figure.panels
    found = lines(inference)
    assert found["isoflop"] == ([50.0, 90.0], [1.1, 1.5])
    assert found["PyTorch, zeros computed"] == ([50.0, 90.0], [4.5, 4.5])
    assert found["paper: PyTorch, zeros computed"] == ([90.0], [19.5])
    assert found["paper: DeepSparse"] == ([90.0], [3.5])
    assert set(found["dense PyTorch"][1]) == {1.0}
    assert len(found) == 5
    assert inference.title == "Inference: a:b, 1×2, 2\N{NO-BREAK SPACE}threads, a processor"
    found = lines(training)
    assert found["paper: Cerebras CS-2"] == ([50.0, 75.0, 90.0], [1.30, 1.39, 2.82])
    assert found["paper: PyTorch, zeros computed"] == ([90.0], [10.6])
    assert found["dense PyTorch"][0][-1] == 90.0
    assert training.title.startswith("Training step: a:b")


def test_speed_ups_and_the_ideal():
    (figure,) = speed_ups([INFERENCE, [MATMUL]])
    (panel,) = figure.panels
    found = lines(panel)
    assert found["isoflop"] == ([75.0], [3.2])
    assert found["PyTorch CSR"] == ([75.0], [0.5])
    x, y = found["ideal, 1 ÷ (1 − sparsity)"]
    assert (x[0], x[-1], y[0], y[-1]) == (0.0, 75.0, 1.0, 4.0)
    assert len(found) == 3
    assert panel.title.startswith("linear 4 → 8, same size, forward, batch 2, 2")


def test_every_contestant_has_a_look_of_its_own():
    sparse = {name for name in CONTESTANTS.names() if not CONTESTANTS.get(name).on_dense}
    assert "sparselab" in sparse
    assert sparse <= LOOKS.keys()
    assert len({label for label, _ in LOOKS.values()}) == len(LOOKS)
    assert len({(color(group), marker(group)) for _, group in LOOKS.values()}) == len(LOOKS)


def test_logarithmic_axes_have_plain_numbers():
    (figure,) = relative_times([INFERENCE])
    drawn = draw(figure)
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    assert axes.get_yscale() == "log"
    assert {"1", "2", "5", "10", "20"} <= {label.get_text() for label in axes.get_yticklabels()}
    axis = interactive(figure)["layout"]["yaxis"]
    assert axis["type"] == "log"
    assert axis["ticktext"] == ["1", "2", "5", "10", "20", "50", "100"]


def test_figures_of_the_paper_are_hollow():
    (figure,) = relative_times([INFERENCE])
    hollow = {
        trace["name"]
        for trace in interactive(figure)["data"]
        if trace["marker"]["symbol"].endswith("-open")
    }
    assert hollow == {"paper: PyTorch, zeros computed", "paper: DeepSparse"}
    (axes,) = draw(figure).axes
    faces = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() != "None"]
    assert faces.count("none") == 2


def test_nothing_to_draw():
    for function in (relative_times, speed_ups):
        with pytest.raises(FigureError, match="--bench"):
            function([])
    with pytest.raises(FigureError, match="do not --skip"):
        speed_ups([[result("matmul", 0.5, {"isoflop": 1.0})]])
    with pytest.raises(FigureError, match="relative to a dense model"):
        relative_times([[result("inference", 0.5, {"isoflop": 1.0})]])


def test_in_a_report(make_run, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(INFERENCE))
    (tmp_path / "b.json").write_text(json.dumps(MATMUL))
    out = tmp_path / "page.html"
    run = make_run("run", 0, 90.0)
    written = write_report([run], out, bench=[tmp_path / "a.json", tmp_path / "b.json"])
    assert not {"relative-times", "speed-ups"} & written["missing"].keys()
    assert '<figure id="speed-ups">' in out.read_text()
    assert {"relative-times", "speed-ups"} <= write_report([run], out)["missing"].keys()


KINDLESS = {"seconds": {}, "ratio_to_dense": {}, "machine": {"cpu": ""}, "workload": {"kind": 1}}
TITLELESS = {**KINDLESS, "workload": {"kind": "matmul", "sparsity": 0.5, "threads": 1}}


@pytest.mark.parametrize(
    "text", ["{", "[]", "7", "{}", json.dumps(KINDLESS), json.dumps([MATMUL, TITLELESS])]
)
def test_files_of_something_else(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(IsoflopError, match=r"a\.json"):
        read_bench(tmp_path / "a.json")
    with pytest.raises(IsoflopError, match="cannot be read"):
        read_bench(tmp_path / "absent.json")
