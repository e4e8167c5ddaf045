"""Runs work in processes of this machine."""

import os
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

import torch

from isoflop.errors import IsoflopError
from isoflop.lab.reproduce.work import Work
from isoflop.lab.workers import WorkerProcess

_WORKER = "isoflop.lab.reproduce.worker"


class LocalExecutor:
    """A few processes at a time, each new, and each with a GPU of its own where there are any.

    Args:
        slots: How many processes at a time.
        threads: Threads of each.
    """

    def __init__(self, slots: int, threads: int) -> None:
        for name, value in (("--jobs", slots), ("--threads", threads)):
            if value < 1:
                raise IsoflopError(f"{name} must be at least 1, not {value}.")
        self.slots = slots
        self._threads = threads
        self._devices = _visible_devices()
        self._free = list(range(slots))
        self._running: list[_Process] = []

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._running:
            process.end()

    def start(self, work: Work, folder: Path) -> "_Process":
        """Start a process."""
        slot = self._free.pop(0)
        # Where a unit of work starts processes itself, they read the variable.
        environment = {"OMP_NUM_THREADS": str(self._threads)}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        process = _Process(work, folder, slot, self._threads, environment)
        self._running.append(process)
        return process

    def wait(self, handles: Sequence["_Process"]) -> list[tuple["_Process", str | None]]:
        """Wait until a process has ended."""
        ready = wait([process.connection for process in handles])
        ended = [process for process in handles if process.connection in ready]
        for process in ended:
            self._running.remove(process)
            self._free.append(process.slot)
        return [(process, process.answer()) for process in ended]


class _Process(WorkerProcess):
    """A process that does a unit of work."""

    def __init__(
        self, work: Work, folder: Path, slot: int, threads: int, environment: dict[str, str]
    ) -> None:
        super().__init__(_WORKER, work, folder, threads, environment)
        self.slot = slot

    def answer(self) -> str | None:
        """Return why the work failed, or None."""
        try:
            error = self.connection.recv()
        except EOFError:
            error = f"Its process ended with exit code {self.exit_code()}."
        self.end()
        return error


def _visible_devices() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]
