import json
import re

import pytest

from isoflop.errors import IsoflopError, RunDirectoryError
from isoflop.lab.cli import main
from isoflop.lab.report import write_report
from isoflop.lab.report.figures import FIGURES

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
WIDE = {"transform": "wide", "method": "rigl"}


def test_the_page_holds_everything(trained, tmp_path):
    out = tmp_path / "page.html"
    written = write_report(trained, out, figures=tmp_path)
    assert [row["runs"] for row in written["rows"]] == [1, 2]
    assert written["missing"].keys() == {"relative-times", "speed-ups"}  # of no runs
    assert written["problems"] == {}
    page = out.read_text()
    for text in ("Sparse Wide 50 % RigL", "recipe.update_every", "versions.torch", "stages.0.0"):
        assert text in page
    assert page.count("<details>") == 3
    figures = set(re.findall(r'<figure id="([^"]+)"', page))
    assert len(figures) >= len(FIGURES.names())
    assert {p.name for p in tmp_path.glob("*.png")} == {
        f"{name}-{theme}.png" for name in figures for theme in ("light", "dark")
    }


def test_the_page_asks_for_nothing(trained, tmp_path):
    write_report(trained[:1], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert re.findall(r"<(?:link|iframe|img|script src)", page.split("<script>")[0]) == []


def test_text_from_runs_is_escaped(make_run, tmp_path):
    run = make_run("run", 0, 90.0, sparsity=0.5, transform="wide", method=HOSTILE, recipe=HOSTILE)
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["<i>key</i>"] = HOSTILE
    (run / "config.json").write_text(json.dumps(config))
    write_report([run], tmp_path / "page.html", title=HOSTILE)
    page = (tmp_path / "page.html").read_text()
    assert "alert(1)" in page
    for bad in ("<script>alert", "<img src=x", "<i>key"):
        assert bad not in page
    data = page.split('id="data">')[1].split("</script>")[0]
    assert "<" not in data
    assert "\\u003c" in data or "&lt;" in data
    assert len(json.loads(data)) == page.count("<figure id=")


def test_runs_of_different_tasks(make_run, tmp_path):
    runs = [make_run("a", 0, 90.0), make_run("b", 0, 70.0, recipe="cifar100")]
    write_report(runs, tmp_path / "page.html")
    assert "must not be\ncompared" in (tmp_path / "page.html").read_text()


def test_the_page_says_what_is_missing(make_run, tmp_path):
    run = make_run("a", 0, 90.0, sparsity=0.5, **WIDE)
    (run / "summary.json").unlink()
    (run / "spectra.jsonl").unlink()
    (run / "metrics.jsonl").write_text('{"epoch": 1')
    written = write_report([run], tmp_path / "page.html")
    assert written["rows"] == []
    assert set(written["missing"]) == {
        "accuracy-flops", "accuracy-sparsity", "curves", "degrees", "layers", "mask-images",
        "measures-accuracy", "measures-pareto", "measures-training", "relative-times", "speed-ups",
    }  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    for text in ("No run is complete", "--spectra every=1epoch", "0 of 2 epochs are done"):
        assert text in page


def test_mistakes_write_nothing(make_run, tmp_path):
    out = tmp_path / "page.html"
    with pytest.raises(RunDirectoryError, match="no runs"):
        write_report([], out)
    with pytest.raises(RunDirectoryError, match="holds no run"):
        write_report([tmp_path], out)
    run = make_run("a", 0, 90.0)
    with pytest.raises(IsoflopError, match="no folder"):
        write_report([run], tmp_path / "absent" / "page.html")
    (tmp_path / "file").touch()
    with pytest.raises(IsoflopError, match="cannot be written"):
        write_report([run], out, figures=tmp_path / "file" / "figures")
    assert not out.exists()


def test_the_folder_of_figures_is_made(make_run, tmp_path):
    figures = tmp_path / "new" / "figures"
    write_report([make_run("a", 0, 90.0)], tmp_path / "page.html", figures=figures)
    assert (figures / "accuracy-flops-light.png").exists()


def test_command_without_a_page(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["report", str(make_run("a", 0, 90.0))])
    assert (tmp_path / "report.html").exists()


def test_command(make_run, tmp_path, capsys):
    run = make_run("a", 0, 90.0)
    out = tmp_path / "page.html"
    main(["report", str(run), "--out", str(out), "--json"])
    written = json.loads(capsys.readouterr().out)
    assert written["rows"][0]["label"] == "Dense"
    assert "measures-accuracy" in written["missing"]
    main(["report", str(run), "--out", str(out), "--title", "Mine"])
    text = capsys.readouterr().out
    assert "without measures-accuracy: No run has spectra." in text
    assert "<title>Mine</title>" in out.read_text()
