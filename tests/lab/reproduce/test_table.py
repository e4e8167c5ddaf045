"""A part of a table from the command to its files."""

import fcntl
import json
import subprocess
import sys
import time

import pytest
from tests.commands import fails

from isoflop.lab.cli import main

TINY = ("--epochs", "1", "--base-width", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of two rows, whose content other tests add to."""
    out = tmp_path_factory.mktemp("reproduction")
    out.rmdir()
    return out


def run_json(capsys, *args):
    main(["reproduce", *args, "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_part_of_a_table(capsys, folder):
    args = ["table2", "--out", str(folder), "--only", "method=dense", "method=rigl", *TINY]
    files = ["--markdown", str(folder.parent / "t.md"), "--figure", str(folder.parent / "t.svg")]
    table = run_json(capsys, *args, *files, "--jobs", "2", "--seeds", "1")
    assert (table["table"], table["preset"], table["paper_setting"]) == ("table2", "smoke", False)
    assert "digits" in table["setting"]
    assert "epochs 1" in table["setting"]
    assert table["failed"] == []
    rows = table["rows"]
    assert [(row["method"], row.get("sparsity")) for row in rows] == [
        ("dense", None), ("rigl", 0.5), ("rigl", 0.75), ("rigl", 0.9)
    ]  # fmt: skip
    assert [row["paper"] for row in rows] == [77.0, 79.1, 79.5, 80.1]
    for row in rows:
        assert 0 < row["mean"] <= 100
        assert row["difference"] == row["mean"] - row["paper"]
        (result,) = row["results"]
        summary = json.loads((folder / result / "summary.json").read_text())
        assert (summary["accuracy"], summary["epochs"]) == (row["mean"], 1)
    assert json.loads((folder / "table2.json").read_text()) == table
    assert (folder / "table2.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder.parent / "t.svg").read_text()
    assert "| rigl | 0.9 |" in (folder.parent / "t.md").read_text()


def test_what_is_done_is_shared(capsys, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/summary.json")}
    args = ["table8", "--out", str(folder), "--only", "transform=wide", *TINY]
    found = run_json(capsys, *args, "--dry-run", "--no-calibration")
    assert [run["done"] for run in found["runs"]] == [True, True, True]
    assert (found["flops_left"], found["seconds_left"]) == (None, None)
    main(["reproduce", *args])
    out, err = capsys.readouterr()
    assert "NOT the paper's setting" in out
    assert "80.10 ± 0.20" in out
    assert err == ""
    after = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/summary.json")}
    assert after == before


def test_a_failure_is_reported_with_what_there_is(capsys, folder):
    args = ["table8", "--out", str(folder), "--only", "method=rigl", "sparsity=0.9", *TINY]
    (run,) = (
        run["run"]
        for run in run_json(capsys, *args, "--dry-run", "--no-calibration")["runs"]
        if not run["done"]
    )
    path = folder / run
    path.mkdir(parents=True)
    (path / "letter.txt").write_text("dear")
    with pytest.raises(SystemExit) as error:
        main(["reproduce", *args])
    assert error.value.code == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith(f"failed: {run}: ")
    assert "letter.txt" in out.splitlines()[-1]
    assert "80.10" in out
    assert "[2/2]" in err


def test_the_figure_tells_what_it_lacks(capsys, folder):
    args = ["reproduce", "table14", "--out", str(folder), "--only", "sparsity=0"]
    main(args)
    out, err = capsys.readouterr()
    assert "d_ff" in out
    assert "Preset smoke: the paper's setting." in out
    assert err == ""
    main([*args, "--figure", str(folder / "x.png")])
    assert capsys.readouterr().err == "without figure: table14 has no figure.\n"


def test_a_killed_command_goes_on(capsys, tmp_path):
    out, epochs = tmp_path / "out", 12
    args = ["table2", "--out", str(out), "--only", "method=rigl", "sparsity=0.5"]
    args += ["--epochs", str(epochs), "--base-width", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "isoflop.lab.cli", "reproduce", *args], stderr=subprocess.DEVNULL
    )
    while not list(out.glob("runs/*/seed0/checkpoint-000001")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    (run,) = out.glob("runs/*/seed0")
    # The run ends with the command that started it, and lets go of its directory.
    with open(run / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    before = (run / "metrics.jsonl").read_text().splitlines()
    assert len(before) < epochs
    table = run_json(capsys, *args)
    assert table["failed"] == []
    assert table["rows"][0]["seeds"] == 1
    after = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in after] == list(range(1, epochs + 1))
    assert after[0] == before[0]  # not trained again


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["table3"], "Unknown table 'table3'. Did you mean"),
        (["table2", "--only", "method=adam"], "Values of method: dense, static"),
        (["table2", "--preset", "full", "--only", "method=dense"], "--data DIR"),
        (["table2", "--seeds", "0"], "--seeds must be at least 1"),
        (["table2", "--jobs", "0"], "--jobs must be at least 1"),
        (["table2", "--epochs", "0"], "epochs must be at least 1"),
        (["table2", "--data", "a", "b"], "two folders"),
        (["table2", "--markdown", "nowhere/t.md"], "there is no folder nowhere"),
        (["table2", "--ray", "here"], "no address"),
        (["table2", "--ray", "127.0.0.1:1"], "out of reach"),
        (["figure7", "--ray", "local"], "leave out --ray"),
    ],
)
def test_mistakes_write_nothing(capsys, tmp_path, args, message):
    assert message in fails(capsys, "reproduce", *args, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    message = fails(capsys, "reproduce", "table2", "--out", str(tmp_path))
    assert "holds files of something else (thesis.tex)" in message
    assert "is a file" in fails(capsys, "reproduce", "table2", "--out", f"{tmp_path}/thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
