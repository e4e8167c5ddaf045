"""Runs work in processes of this machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from isoflop.errors import IsoflopError
from isoflop.reproduce.work import Work, execute


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
        environment = {"OMP_NUM_THREADS": str(self._threads)}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        with _environment(environment):
            process = _Process(work, folder, slot)
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


class _Process:
    """A process that does a unit of work."""

    def __init__(self, work: Work, folder: Path, slot: int) -> None:
        self.slot = slot
        context = multiprocessing.get_context("spawn")
        self.connection, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_main, args=(sender, work, folder))
        self._process.start()
        sender.close()

    def answer(self) -> str | None:
        """Return why the work failed, or None."""
        try:
            error = self.connection.recv()
        except EOFError:
            self._process.join()
            error = f"Its process ended with exit code {self._process.exitcode}."
        self.end()
        return error

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _main(connection: Connection, work: Work, folder: Path) -> None:
    # Who interrupts the command ends this process too, by the command's hand; and where the command
    # was killed, a run that goes on would keep the next one out of its directory.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    connection.send(execute(work, folder))
    connection.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _visible_devices() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Set environment variables, which a process that is started inherits."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
