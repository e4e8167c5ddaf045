import os
from multiprocessing import forkserver

import pytest

from isoflop.lab.workers import WorkerProcess

ECHO = "tests.lab.echo_worker"


@pytest.fixture(autouse=True, scope="module")
def _own_server():
    """Leave no server behind that has imported nothing of what other tests' processes need."""
    yield
    forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue]


def test_what_a_process_sends_arrives():
    process = WorkerProcess(ECHO, "hello")
    pid, text = process.connection.recv()
    assert (pid, text) == (process.pid, "hello")
    assert pid != os.getpid()
    assert process.exit_code() == 0
    process.end()


def test_a_process_that_dies_hangs_up():
    process = WorkerProcess(ECHO, "die", daemon=True)
    with pytest.raises(EOFError):
        process.connection.recv()
    assert process.exit_code() == 7
    assert not process.is_alive()
    process.end()
