"""Runs work on a Ray cluster."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.lab.own import import_modules, imported_modules
from isoflop.lab.reproduce.work import Work, execute
from isoflop.optional import require

_PATIENCE = 10.0
"""Seconds within which the cluster's address must answer."""


class RayExecutor:
    """Ray tasks, each in a process of its own, with a processor and, where there are any, a GPU.

    Args:
        address: ``"local"`` starts a cluster on this machine; ``"auto"`` is the one that runs on it;
            otherwise ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises:
        IsoflopError: Ray is not installed, or the cluster is out of reach.
    """

    slots = 1_000_000  # Ray itself knows how much room there is

    def __init__(self, address: str, *, processors: int | None = None) -> None:
        self._ray = require("ray", "cluster")
        if address not in ("local", "auto"):
            _knock(address)
        options: dict[str, Any] = {"num_cpus": processors} if processors else {}
        try:
            self._ray.init(address=address, log_to_driver=False, include_dashboard=False, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, str(error)) from error
        resources = self._ray.cluster_resources()
        self._task = self._ray.remote(
            num_cpus=1,
            num_gpus=1 if resources.get("GPU") else 0,
            max_calls=1,
            # What was interrupted goes on from where it was saved last.
            max_retries=2,
        )(_execute)

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def start(self, work: Work, folder: Path) -> Any:
        """Submit a task."""
        if work.alone:
            raise IsoflopError("Times are measured on this machine: leave out --ray.")
        return self._task.remote(work, folder, imported_modules())

    def wait(self, handles: Sequence[Any]) -> list[tuple[Any, str | None]]:
        """Wait until a task has ended."""
        ready, _ = self._ray.wait(list(handles), num_returns=1)
        return [(handle, self._answer(handle)) for handle in ready]

    def _answer(self, handle: Any) -> str | None:
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            first, *_ = str(error).strip().splitlines() or [type(error).__name__]
            return f"Its Ray task was lost: {first}"


def _execute(work: Work, folder: Path, own: Sequence[str]) -> str | None:
    import_modules(own)
    return execute(work, folder)


def _knock(address: str) -> None:
    """Raise unless somebody listens at an address; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise IsoflopError(
            f"--ray {address!r} is no address. Write HOST:PORT, ray://HOST:PORT, auto or local."
        )
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> IsoflopError:
    return IsoflopError(
        f"The Ray cluster at {address!r} is out of reach: {reason}. Start one (`ray start --head`), "
        "or give the address of one that runs. Nothing is lost: what is done stays done."
    )
