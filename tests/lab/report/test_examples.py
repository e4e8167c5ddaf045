"""The examples run as they are written."""

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quickstart(capsys):
    load("quickstart").main()
    out = capsys.readouterr().out
    assert "wide(" in out
    assert "2 mask updates" in out or "3 mask updates" in out


def test_demo_prints_one_table_and_can_run_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = load("demo")
    args = ["--seeds", "1", "--epochs", "1", "--base-width", "4"]
    demo.main(args)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert [line.split()[-1] for line in lines[1:]] == ["1"] * 4
    assert "RigL" in lines[4]
    output = tmp_path / "demo-output"
    results = json.loads((output / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["dense", "static", "set", "rigl"]
    assert (output / "accuracy-vs-training-flops.png").stat().st_size > 10_000
    (output / "left-over").touch()
    demo.fresh_folder(output)
    assert [p.name for p in output.iterdir()] == [demo.MARKER]


def test_demo_deletes_only_what_it_made(tmp_path, capsys):
    demo = load("demo")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="not made by this demo"):
        demo.main(["--out", str(tmp_path)])
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(SystemExit, match="no folder"):
        demo.main(["--out", str(tmp_path / "thesis.tex")])
    link = tmp_path / "link"
    link.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(SystemExit, match="no folder"):
        demo.main(["--out", str(link)])
    assert capsys.readouterr().out == ""


def test_spectra_study_writes_its_results_and_goes_on(tmp_path, capsys):
    study = load("spectra_study")
    args = ["--recipe", "digits", "--seeds", "1", "--epochs", "4", "--base-width", "4"]
    study.main([*args, "--out", str(tmp_path)])
    first = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    assert len(rows) == 5 * (4 * 2 + 1)
    assert {row["question"] for row in rows} == {"levels", "changes", "ends"}
    for row in rows:
        if row["model"].endswith("static") and row["measure"] == "ramanujan_gap":
            assert row["rho"] is None  # static masks do not change
            assert row["mean_move"] == 0
        elif row["model"].endswith("RigL") and row["measure"] == "spectral_gap":
            assert -1 <= row["low"] <= row["high"] <= 1
    assert (tmp_path / "results.md").read_text() == first
    assert len((tmp_path / "results.csv").read_text().splitlines()) == len(rows) + 1
    assert (tmp_path / "report.html").stat().st_size > 4_000_000
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}
    study.main([*args, "--out", str(tmp_path)])
    assert capsys.readouterr().out == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")} == before
