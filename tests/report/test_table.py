import json

import pytest

from isoflop.errors import RunDirectoryError
from isoflop.report import format_table, summary_table
from isoflop.report.table import label


@pytest.fixture
def make_run(tmp_path):
    """Write a run directory with chosen results."""

    def make(name, seed, accuracy, *, transform=None, sparsity=None, method="dense", **more):
        path = tmp_path / name
        path.mkdir()
        config = {
            "recipe": {"name": "digits"},
            "transform": transform,
            "transform_config": {"sparsity": sparsity} if transform else None,
            "method": method,
            "sparsity": sparsity,
            "seed": seed,
            "data": name,
            **more,
        }
        summary = {
            "recipe": "digits",
            "seed": seed,
            "accuracy": accuracy,
            "macs": 1001 if transform else 1000,
            "dense_macs": 1000,
            "nnz": 50,
            "numel": 200 if transform else 50,
            "training_flops": 10**9 + seed,
            "seconds": 2.0 + seed,
        }
        (path / "config.json").write_text(json.dumps(config))
        (path / "summary.json").write_text(json.dumps(summary))
        return path

    return make


def test_runs_are_grouped_by_all_but_the_seed(make_run):
    wide = {"transform": "wide", "sparsity": 0.75, "method": "rigl"}
    runs = [
        make_run("a", 0, 90.0),
        make_run("b", 0, 91.0, **wide),
        make_run("c", 1, 94.0),
        make_run("d", 1, 92.0, **wide),
        make_run("e", 0, 95.0, transform="wide", sparsity=0.5, method="rigl"),
        make_run("f", 2, 50.0, epochs=3),
    ]
    rows = summary_table(runs)
    assert [row["label"] for row in rows] == [
        "Dense", "Sparse Wide 75 % RigL", "Sparse Wide 50 % RigL", "Dense"
    ]  # fmt: skip
    assert rows[0]["accuracy_mean"] == 92
    assert rows[0]["accuracy_std"] == pytest.approx(8**0.5)  # of a sample
    assert rows[0]["seeds"] == [0, 1]
    assert rows[0]["seconds"] == 2.5
    assert rows[1]["macs_ratio"] == 1.001
    assert rows[2]["accuracy_std"] is None
    assert rows[2]["runs"] == 1
    json.dumps(rows)


def test_text(make_run):
    rows = summary_table([make_run("a", 0, 90.0), make_run("b", 1, 92.0)])
    header, line = format_table(rows).splitlines()
    assert header.split()[:2] == ["model", "accuracy"]
    assert line.split() == ["Dense", "91.00", "±", "1.41", "1.000000", "50", "50", "2.5", "2"]
    assert len(header) == len(line)


def test_no_rows():
    assert summary_table([]) == []
    assert format_table([]).startswith("model")


def test_directories_without_a_complete_run(make_run, tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no run"):
        summary_table([tmp_path])
    run = make_run("a", 0, 90.0)
    (run / "summary.json").unlink()
    with pytest.raises(RunDirectoryError, match="--resume"):
        summary_table([run])


def test_one_seed_twice_is_no_sample_of_two(make_run):
    with pytest.raises(RunDirectoryError, match="same seed"):
        summary_table([make_run("a", 0, 90.0), make_run("b", 0, 90.0)])


@pytest.mark.parametrize(
    ("transform", "options", "sparsity", "method", "expected"),
    [
        (None, None, None, "dense", "Dense"),
        (None, None, 0.9, "set", "SET 90 %"),
        ("parallel", {}, 0.75, "static", "Sparse Parallel 75 % static"),
        ("wide", {}, 0.75, "dense", "Dense Wide, as large as at 75 %"),
        ("low_rank", {"width": 2.0}, 0.0, "static", "Low Rank k=2 static"),
        ("low_rank", {"width": None}, 0.75, "static", "Low Rank 75 % static"),
    ],
)
def test_labels(transform, options, sparsity, method, expected):
    config = {
        "transform": transform,
        "transform_config": options,
        "sparsity": sparsity,
        "method": method,
    }
    assert label(config) == expected
