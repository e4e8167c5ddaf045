"""Runs the checks, each in a process of its own, so that no model can harm another's."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from isoflop.transforms import Transform
from isoflop.zoo import worker as worker_module

MEMORY = 8 << 30
"""Bytes of memory at which the process of a model is ended."""


@dataclass
class _Job:
    spec: str
    process: Any
    connection: Any
    start: float
    stage: str = "start"
    peak: int = 0
    result: dict[str, Any] | None = None


def check_all(
    next_spec: Callable[[], str | None],
    config_of: Callable[[str], Transform],
    *,
    jobs: int,
    timeout: float,
    memory: int = MEMORY,
) -> Iterator[dict[str, Any]]:
    """Check the models that `next_spec` names, `jobs` at a time, and yield results as they come.

    Args:
        next_spec: Returns the next model, or None if there is none at present.
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
                running.append(_start(context, spec, config_of(spec)))
            if not running:
                return
            wait([job.connection for job in running], timeout=0.2)
            for job in list(running):
                result = _look(job, timeout, memory)
                if result is not None:
                    running.remove(job)
                    yield result
    finally:
        for job in running:
            _stop(job)


def _context() -> Any:
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([worker_module.__name__])
    return context


def _start(context: Any, spec: str, config: Transform) -> _Job:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=worker_module.main, args=(sender, spec, config), daemon=True)
    process.start()
    sender.close()
    return _Job(spec, process, receiver, time.monotonic())


def _look(job: _Job, timeout: float, memory: int) -> dict[str, Any] | None:
    """Return the result of a job if it has ended or must be ended."""
    rss = resident(job.process.pid)
    job.peak = max(job.peak, rss)
    ended = not job.process.is_alive()
    try:
        while job.connection.poll():
            kind, value = job.connection.recv()
            if kind == "stage":
                job.stage = value
            else:
                job.result = value
    except (EOFError, OSError):
        ended = True
    elapsed = time.monotonic() - job.start
    if job.result is None and not ended:
        if elapsed > timeout:
            error, message = "Timeout", f"more than {timeout:g} s, in the stage {job.stage!r}"
        elif rss > memory:
            gib = memory / 2**30
            error, message = "Memory", f"more than {gib:g} GiB, in the stage {job.stage!r}"
        else:
            return None
    elif job.result is None:
        job.process.join(5)
        code = job.process.exitcode
        error, message = "Crash", f"exit code {code}, in the stage {job.stage!r}"
    else:
        error = message = ""
    _stop(job)
    result = job.result or {
        "spec": job.spec,
        "status": "fail",
        "stage": job.stage,
        "error": error,
        "message": message,
        "cause": f"{error}: in the stage {job.stage!r}",
        "total_seconds": round(elapsed, 2),
    }
    return result | {"peak_mib": job.peak >> 20}


def _stop(job: _Job) -> None:
    job.process.join(0 if job.result is None else 5)
    if job.process.is_alive():
        job.process.kill()
        job.process.join()
    job.connection.close()


def resident(pid: int | None) -> int:
    """Return the bytes of memory that a process holds; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
