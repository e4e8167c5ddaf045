"""Runs units of work in the order that they need, as many at a time as there is room for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from isoflop.lab.reproduce.work import Work, is_done


class Executor(Protocol):
    """Where work is done."""

    @property
    def slots(self) -> int:
        """How many units it takes at a time."""
        ...

    def start(self, work: Work, folder: Path) -> Any:
        """Start a unit of work and return a handle of it."""
        ...

    def wait(self, handles: Sequence[Any]) -> list[tuple[Any, str | None]]:
        """Wait until one at least has ended; return these, each with why it failed, or None."""
        ...


def run_all(
    works: Sequence[Work],
    folder: Path,
    executor: Executor,
    ended: Callable[[Work, str | None], None],
) -> None:
    """Do everything that is not done yet; what fails does not keep back the rest.

    Args:
        works: The units of work, what they need included.
        folder: Where the results go.
        executor: Where the work is done.
        ended: Called with each unit that was done or failed, and why it failed.
    """
    waiting = [work for work in works if not is_done(work, folder)]
    running: dict[Any, Work] = {}
    while waiting or running:
        for work in list(waiting):
            if not _has_room(work, running, executor.slots):
                break
            lacking = [need for need in work.needs if not is_done(need, folder)]
            if not lacking:
                waiting.remove(work)
                running[executor.start(work, folder)] = work
            elif not _to_come(lacking, [*waiting, *running.values()]):
                waiting.remove(work)
                ended(work, f"It needs {lacking[0].name}, which failed.")
        if not running:
            continue
        for handle, error in executor.wait(list(running)):
            work = running.pop(handle)
            if error is None and not is_done(work, folder):
                error = (
                    f"It ended, but {folder / work.name} is not there. Choose an --out that all "
                    "machines share."
                )
            ended(work, error)


def _has_room(work: Work, running: dict[Any, Work], slots: int) -> bool:
    if work.alone or any(other.alone for other in running.values()):
        return not running
    return len(running) < slots


def _to_come(needs: Sequence[Work], works: Sequence[Work]) -> bool:
    names = {work.name for work in works}
    return all(need.name in names for need in needs)
