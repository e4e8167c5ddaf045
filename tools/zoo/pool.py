"""Runs the checks, each in a process of its own, so that no model can harm another's check."""

import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from isoflop.lab.workers import WorkerProcess
from isoflop.transforms import Transform

MEMORY = 8 << 30
"""Bytes at which the process of a model is ended."""

_LOOK_EVERY = 0.2
_WORKER = "tools.zoo.worker"


def check_all(
    next_spec: Callable[[], str | None],
    config_of: Callable[[str], Transform],
    *,
    jobs: int = 1,
    timeout: float = 300.0,
    memory: int = MEMORY,
) -> Iterator[dict[str, Any]]:
    """Check models, several at a time, and yield the results as they come.

    A process that crashes, or that takes too much time or memory, is the failure of its model.

    Args:
        next_spec: Returns the next model, or None if there is none at present; it is asked again
            after every result.
        config_of: Returns the transform for a model.
        jobs: Number of processes.
        timeout: Seconds that a model may take.
        memory: Bytes that its process may hold.
    """
    running: list[_Job] = []
    try:
        while True:
            while len(running) < jobs and (spec := next_spec()) is not None:
                running.append(_Job(spec, config_of(spec)))
            if not running:
                return
            wait([job.connection for job in running], timeout=_LOOK_EVERY)
            for job in list(running):
                result = job.look(timeout, memory)
                if result is not None:
                    running.remove(job)
                    yield result
    finally:
        for job in running:
            job.end()


class _Job(WorkerProcess):
    """A process and what it has said so far."""

    def __init__(self, spec: str, config: Transform) -> None:
        super().__init__(_WORKER, spec, config, daemon=True)
        self.spec = spec
        self._start = time.monotonic()
        self._stage = "start"
        self._peak = 0
        self._ended = False

    def look(self, timeout: float, memory: int) -> dict[str, Any] | None:
        """Return the result, if the process has ended or had to be ended."""
        held = resident(self.pid)
        self._peak = max(self._peak, held)
        alive = self.is_alive()  # first, as it may answer and end meanwhile
        result = self._listen()
        if result is None:
            if self._ended or not alive:
                result = self._death("Crash", f"exit code {self.exit_code()}")
            elif held > memory:
                result = self._death("Memory", f"more than {memory / 2**30:g} GiB")
            elif time.monotonic() - self._start > timeout:
                result = self._death("Timeout", f"more than {timeout:g} s")
            else:
                return None
        self.end()
        return result | {"peak_mib": self._peak >> 20}

    def _listen(self) -> dict[str, Any] | None:
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, dict):
                    return message
                self._stage = message
        except (EOFError, OSError):  # nobody is left at the other end
            self._ended = True
        return None

    def _death(self, error: str, message: str) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "status": "not built" if self._stage == "build" else "fail",
            "stage": self._stage,
            "error": error,
            "message": message,
            "cause": f"{error} in the stage {self._stage!r}",
            "total_seconds": round(time.monotonic() - self._start, 2),
        }


def resident(pid: int) -> int:
    """Return the bytes of memory that a process holds; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
