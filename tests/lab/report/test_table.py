import json

import pytest

from isoflop.errors import RunDirectoryError
from isoflop.lab.report import format_spectra, format_table, summary_table
from isoflop.lab.report.runs import label


def test_runs_are_grouped_by_all_but_the_seed(make_run):
    wide = {"transform": "wide", "sparsity": 0.75, "method": "rigl"}
    runs = [
        make_run("a", 0, 90.0),
        make_run("b", 0, 91.0, **wide),
        make_run("c", 1, 94.0),
        make_run("d", 1, 92.0, **wide),
        make_run("e", 0, 95.0, transform="wide", sparsity=0.5, method="rigl"),
        make_run("f", 2, 50.0, epochs=3, storage="x"),
    ]
    rows = summary_table(runs)
    assert [row["label"] for row in rows] == [
        "Dense (epochs=2)", "Sparse Wide 75 % RigL", "Sparse Wide 50 % RigL",
        "Dense (epochs=3, storage=x)",
    ]  # fmt: skip
    assert rows[0]["mean"] == 92
    assert rows[0]["std"] == pytest.approx(8**0.5)  # of a sample
    assert rows[0]["seeds"] == [0, 1]
    assert rows[0]["seconds"] == 2.5
    assert rows[1]["macs_ratio"] == 1.001
    assert rows[2]["std"] is None
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
        ("parallel", {}, 0.75, "static", "Sparse Parallel 75 % Static"),
        ("wide", {}, 0.75, "dense", "Dense Wide, as large as at 75 %"),
        ("low_rank", {"width": 2.0}, 0.0, "static", "Low Rank k=2 Static"),
        ("low_rank", {"width": None}, 0.75, "static", "Low Rank 75 % Static"),
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
    assert label({**config, "pattern": "unstructured", "allocation": "uniform"}) == expected


def test_labels_tell_patterns_and_allocations():
    config = {"transform": None, "transform_config": None, "sparsity": 0.5, "method": "set"}
    assert label({**config, "pattern": "2:4", "allocation": "erk"}) == "SET 2:4 erk 50 %"


def test_text_of_spectra():
    numbers = dict.fromkeys(
        ("ramanujan_gap", "imdb", "imdb_normalized", "spectral_gap", "imsg"), 0.5
    )
    layer = {"edges": 1200, "subgraphs": 3, "skipped": None, **numbers}
    empty = {**layer, **dict.fromkeys(numbers), "skipped": "too sparse"}
    text = format_spectra(
        {
            "layers": {"a": layer, "b": empty}, "network": numbers, "epoch": 2, "step": 9,
            "bound": "mu0", "seconds": 1.5,
        }
    )  # fmt: skip
    header, first, second, network, last = text.splitlines()
    assert first.split() == ["a", "1,200", *["0.5000"] * 5, "3"]
    assert second.split()[-7:] == [*["–"] * 4, "3", "too", "sparse"]
    assert network.split()[-5:] == ["0.5000"] * 5
    assert len(first) == header.index("subgraphs") + len("subgraphs")
    assert last == "after epoch 2, step 9; bound mu0; measured in 1.50 s"
