"""Runs the checks, each in a process of its own, so that no model can harm another's check."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from isoflop.transforms import Transform

MEMORY = 8 << 30
"""Bytes at which the process of a model is ended."""

_LOOK_EVERY = 0.2
_PATIENCE = 5.0
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
    context = _context()
    running: list[_Job] = []
    try:
        while True:
            while len(running) < jobs and (spec := next_spec()) is not None:
                running.append(_Job(context, spec, config_of(spec)))
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


def _context() -> Any:
    # Forked off a server that has imported everything, a process starts at once.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([_WORKER])
        return context
    return multiprocessing.get_context("spawn")


def _work(connection: Connection, spec: str, config: Transform) -> None:
    from tools.zoo import worker

    worker.main(connection, spec, config)


class _Job:
    """A process and what it has said so far."""

    def __init__(self, context: Any, spec: str, config: Transform) -> None:
        self.spec = spec
        self.connection, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(sender, spec, config), daemon=True)
        self._process.start()
        sender.close()
        self._start = time.monotonic()
        self._stage = "start"
        self._peak = 0
        self._ended = False

    def look(self, timeout: float, memory: int) -> dict[str, Any] | None:
        """Return the result, if the process has ended or had to be ended."""
        held = resident(self._process.pid)
        self._peak = max(self._peak, held)
        alive = self._process.is_alive()  # first, as it may answer and end meanwhile
        result = self._listen()
        if result is None:
            if self._ended or not alive:
                self._process.join(_PATIENCE)
                result = self._death("Crash", f"exit code {self._process.exitcode}")
            elif held > memory:
                result = self._death("Memory", f"more than {memory / 2**30:g} GiB")
            elif time.monotonic() - self._start > timeout:
                result = self._death("Timeout", f"more than {timeout:g} s")
            else:
                return None
        self.end()
        return result | {"peak_mib": self._peak >> 20}

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()

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


def resident(pid: int | None) -> int:
    """Return the bytes of memory that a process holds; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
