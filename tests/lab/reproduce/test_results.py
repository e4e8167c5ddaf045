import json

import pytest

from isoflop.errors import IsoflopError
from isoflop.lab.reproduce import DataFolders, Row
from isoflop.lab.reproduce.results import filled, with_needs, works_of
from isoflop.lab.reproduce.sources import Computed, Missing, Training

ROW = Row(labels={"method": "dense"}, source=Training(recipe="digits"), paper=77.0, paper_std=0.2)


@pytest.fixture
def put(tmp_path):
    def write(work, **summary):
        path = tmp_path / work.name / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(summary))
        (path.parent / "config.json").write_text(json.dumps(work.job.config()))

    return write


def test_mean_and_sample_deviation(tmp_path, put):
    works = works_of(ROW, 3, DataFolders())
    for work, accuracy in zip(works, (90.0, 91.0, 95.0), strict=True):
        put(work, accuracy=accuracy)
    row = filled(ROW, works, tmp_path, {})
    assert (row["mean"], row["seeds"], row["seeds_wanted"]) == (92.0, 3, 3)
    assert row["std"] == pytest.approx(7**0.5)
    assert (row["paper"], row["paper_std"], row["difference"]) == (77.0, 0.2, 15.0)
    assert row["results"] == [work.name for work in works]
    assert row["method"] == "dense"


def test_what_is_there_counts(tmp_path, put):
    works = works_of(ROW, 3, DataFolders())
    put(works[1], accuracy=90.0)
    row = filled(ROW, works, tmp_path, {works[0].name: "diverged"})
    assert (row["mean"], row["std"], row["seeds"], row["seeds_wanted"]) == (90.0, None, 1, 3)
    assert row["note"] == "failed"
    nothing = filled(ROW, works[2:], tmp_path, {})
    assert (nothing["mean"], nothing["difference"], nothing["seeds"]) == (None, None, 0)


def test_a_summary_without_the_measure_is_a_gap(tmp_path, put):
    row = Row(labels={}, source=Training(recipe="digits", measure="ap50"))
    works = works_of(row, 1, DataFolders())
    put(works[0], accuracy=90.0)
    found = filled(row, works, tmp_path, {})
    assert found["mean"] is None
    assert "no 'ap50'" in found["note"]


def test_without_runs(tmp_path):
    def broken():
        raise IsoflopError("There is none.")

    assert (
        filled(Row(labels={}, source=Computed(value=lambda: 3), paper=2), [], tmp_path, {})[
            "difference"
        ]
        == 1
    )
    assert filled(Row(labels={}, source=Computed(value=broken)), [], tmp_path, {})["note"] == (
        "There is none."
    )
    missing = filled(Row(labels={}, source=Missing(reason="not here"), paper=2), [], tmp_path, {})
    assert (missing["mean"], missing["seeds_wanted"], missing["note"]) == (None, 0, "not here")


def test_what_is_needed_comes_first_and_once():
    training = Training(recipe="digits", method="dense", backbone=Training(recipe="digits"))
    works = works_of(Row(labels={}, source=training), 2, DataFolders())
    names = [work.name.rpartition("/")[2] for work in with_needs([*works, *works])]
    assert names == ["seed0", "seed0", "seed1", "seed1"]
    assert with_needs(works)[0] == works[0].needs[0]
