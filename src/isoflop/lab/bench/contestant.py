"""What takes part in a benchmark."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from isoflop.lab.bench.case import Case
from isoflop.registry import Registry


class ContestantError(Exception):
    """A contestant that cannot take part; the message says why."""


class Contestant(ABC):
    """One way to do the work of a case.

    Attributes:
        peer: Whether it is another project's, other than PyTorch.
        on_dense: Whether it works on the original dense model.
        bf16: Whether it multiplies in bfloat16.
    """

    peer: ClassVar[bool] = False
    on_dense: ClassVar[bool] = False
    bf16: ClassVar[bool] = False

    def unsuited(self, case: Case, peers_folder: Path) -> str | None:
        """Return why it cannot do the work of `case` here, or None if it can."""
        return None

    @abstractmethod
    def prepare(self, case: Case, peers_folder: Path) -> None:
        """Do whatever is done once, and is not timed."""

    @abstractmethod
    def run(self) -> float:
        """Do the work once and return its seconds."""

    @abstractmethod
    def outputs(self) -> dict[str, Tensor]:
        """Do the work once and return its results, as `Case.reference` names them."""

    @property
    def note(self) -> str | None:
        """What the reader should know about it, such as a version or the layout that it chose."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release what it holds."""


CONTESTANTS: Registry[type[Contestant]] = Registry("contestant")
"""All contestants, in the order of the tables."""


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
