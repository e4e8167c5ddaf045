import json
import os

import pytest
from tests.lab.reproduce.works import Note

from isoflop.errors import IsoflopError
from isoflop.lab.reproduce.local import LocalExecutor
from isoflop.lab.reproduce.schedule import run_all


def run(works, folder, slots=1, threads=1):
    failed = {}
    with LocalExecutor(slots, threads) as executor:
        run_all(works, folder, executor, lambda work, error: failed.update({work.name: error}))
    return failed


def test_each_in_a_process_and_with_a_device_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    works = [Note(label=name) for name in "abc"]
    names = [work.name for work in works]
    assert run(works, tmp_path, slots=2, threads=2) == dict.fromkeys(names)
    results = [json.loads((tmp_path / name).read_text()) for name in names]
    assert len({os.getpid(), *(result["process"] for result in results)}) == 4
    assert {result["device"] for result in results} == {"3", "5"}
    assert [result["threads"] for result in results] == [2, 2, 2]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3, 5"


def test_a_process_that_dies_is_one_failure(tmp_path):
    works = [Note(label="dead", outcome="killed"), Note(label="bug", outcome="bug")]
    failed = run(works, tmp_path, slots=2)
    assert "exit code 7" in failed["dead.json"]
    assert "ZeroDivisionError: division by zero" in failed["bug.json"]
    traceback = tmp_path / "bug.json.error"
    assert str(traceback) in failed["bug.json"]
    assert "in run" in traceback.read_text()


@pytest.mark.parametrize(("slots", "threads"), [(0, 1), (1, 0)])
def test_there_must_be_room(slots, threads):
    with pytest.raises(IsoflopError, match="at least 1"):
        LocalExecutor(slots, threads)
