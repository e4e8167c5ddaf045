"""Processes that each do one piece of work, so that none can harm another's."""

import importlib
import multiprocessing
from collections.abc import Sequence
from typing import Any

from isoflop.lab.own import import_modules, imported_modules

_PATIENCE = 5.0  # seconds for a process that hung up to end by itself


class WorkerProcess:
    """A new process that runs `main` of a module.

    Args:
        module: Name of the module. It should import all that the work needs: where the system can,
            it is imported once, and the processes are forked off the one that did.
        arguments: What `main` is given behind the connection to send messages on.
        daemon: Whether the process may start none itself, and ends with this one.

    Attributes:
        connection: Where messages of the process come from.
    """

    def __init__(self, module: str, *arguments: Any, daemon: bool = False) -> None:
        context = _context(module)
        self.connection, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_main, args=(module, imported_modules(), sender, *arguments), daemon=daemon
        )
        self._process.start()
        sender.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the process has not ended."""
        return self._process.is_alive()

    def exit_code(self) -> int | None:
        """Wait for a process that sends no more, and return its exit code; None if it goes on."""
        self._process.join(_PATIENCE)
        return self._process.exitcode

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _context(module: str) -> Any:
    # Forked off a server that has imported everything, a process starts at once.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([module])
        return context
    return multiprocessing.get_context("spawn")


def _main(module: str, own: Sequence[str], *arguments: Any) -> None:
    import_modules(own)
    importlib.import_module(module).main(*arguments)
