import json

import pytest

from isoflop.errors import FigureError, IsoflopError
from isoflop.report import write_report
from isoflop.report.figures.speed import read_bench, relative_times, speed_ups


def result(kind, sparsity, seconds, **more):
    workload = {"kind": kind, "sparsity": sparsity, **more}
    dense = seconds.get("dense")
    ratios = {name: s / dense for name, s in seconds.items()} if dense else {}
    return {"workload": workload, "machine": {}, "seconds": seconds, "ratio_to_dense": ratios}


INFERENCE = [
    result("inference", s, {"dense": 2.0, "isoflop": ours, "masked": 9.0}, model="timm:resnet18")
    for s, ours in ((0.9, 3.0), (0.5, 2.2))
]
MATMUL = result("matmul", 0.75, {"masked": 4.0, "isoflop": 1.25, "torch_csr": 8.0}, layer="linear")


def lines(figure):
    (panel,) = figure.panels
    return {line.label: (line.x, line.y) for line in panel.marks}


def test_relative_times():
    (figure,) = relative_times([INFERENCE, [MATMUL]])
    found = lines(figure)
    assert found["isoflop"] == ([50.0, 90.0], [1.1, 1.5])
    assert found["masked"] == ([50.0, 90.0], [4.5, 4.5])
    assert set(found["dense"][1]) == {1.0}
    assert list(found) == ["dense", "isoflop", "masked"]
    assert figure.panels[0].title == "inference timm:resnet18"


def test_speed_ups_and_the_ideal():
    (figure,) = speed_ups([INFERENCE, [MATMUL]])
    found = lines(figure)
    assert found["isoflop"] == ([75.0], [3.2])
    assert found["torch_csr"] == ([75.0], [0.5])
    x, y = found["ideal, 1 ÷ (1 − sparsity)"]
    assert (x[0], x[-1], y[0], y[-1]) == (0.0, 75.0, 1.0, 4.0)
    assert "masked" not in found


def test_nothing_to_draw():
    for function in (relative_times, speed_ups):
        with pytest.raises(FigureError, match="--bench"):
            function([])
    with pytest.raises(FigureError):
        speed_ups([[result("matmul", 0.5, {"isoflop": 1.0})]])  # relative to nothing


def test_in_a_report(make_run, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(INFERENCE))
    (tmp_path / "b.json").write_text(json.dumps(MATMUL))
    out = tmp_path / "page.html"
    run = make_run("run", 0, 90.0)
    written = write_report([run], out, bench=[tmp_path / "a.json", tmp_path / "b.json"])
    assert not {"relative-times", "speed-ups"} & written["missing"].keys()
    assert '<figure id="speed-ups">' in out.read_text()
    assert {"relative-times", "speed-ups"} <= write_report([run], out)["missing"].keys()


@pytest.mark.parametrize("text", ["{", "[]", "7", "{}", '{"seconds": {}, "workload": {"kind": 1}}'])
def test_files_of_something_else(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(IsoflopError, match=r"a\.json"):
        read_bench(tmp_path / "a.json")
    with pytest.raises(IsoflopError, match="cannot be read"):
        read_bench(tmp_path / "absent.json")
