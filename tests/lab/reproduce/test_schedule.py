"""Order and room, on an executor that runs nothing at the same time but says what it could."""

import pytest
from tests.lab.reproduce.works import Lonely, Note

from isoflop.lab.reproduce.schedule import run_all
from isoflop.lab.reproduce.work import execute


class Recorder:
    """Does the work when asked whether it has ended, the last started first."""

    def __init__(self, slots):
        self.slots = slots
        self.most = 0
        self.order = []
        self._running = []

    def start(self, work, folder):
        self._running.append((work, folder))
        self.most = max(self.most, len(self._running))
        if work.alone or any(other.alone for other, _ in self._running):
            assert len(self._running) == 1
        return work

    def wait(self, handles):
        assert [work for work, _ in self._running] == list(handles)
        work, folder = self._running.pop()
        self.order.append(work.label)
        return [(work, execute(work, folder))]


@pytest.fixture
def outcomes(tmp_path):
    def run(works, slots=1):
        found = {}
        recorder = Recorder(slots)

        def ended(work, error):
            assert work.label not in found
            found[work.label] = error

        run_all(works, tmp_path, recorder, ended)
        return found, recorder

    return run


def test_everything_is_done_once(outcomes):
    works = [Note(label=name) for name in "abcd"]
    found, recorder = outcomes(works, slots=3)
    assert found == dict.fromkeys("abcd")
    assert recorder.most == 3
    assert outcomes(works, slots=3)[0] == {}  # all done before


def test_a_failure_does_not_keep_back_the_rest(outcomes):
    found, _ = outcomes([Note(label="a", outcome="mistake"), Note(label="b")])
    assert found == {"a": "This cannot work. Do something else.", "b": None}


def test_what_is_needed_comes_first(outcomes):
    need = Note(label="need")
    found, recorder = outcomes([Note(label="user", before=(need,)), need], slots=2)
    assert found == {"user": None, "need": None}
    assert recorder.order == ["need", "user"]
    assert recorder.most == 1


def test_what_needs_a_failure_fails(outcomes):
    need = Note(label="need", outcome="mistake")
    user = Note(label="user", before=(need,))
    found, recorder = outcomes([need, user, Note(label="last", before=(user,))], slots=2)
    assert recorder.order == ["need"]
    assert "needs need.json, which failed" in found["user"]
    assert "needs user.json, which failed" in found["last"]


def test_some_work_wants_to_be_alone(outcomes):
    works = [Note(label="a"), Note(label="b"), Lonely(label="c"), Note(label="d")]
    found, recorder = outcomes(works, slots=3)
    assert found == dict.fromkeys("abcd")
    assert recorder.most == 2


def test_a_result_that_is_not_there_is_a_failure(outcomes):
    found, _ = outcomes([Note(label="a", outcome="nothing")])
    assert "--out that all machines share" in found["a"]
