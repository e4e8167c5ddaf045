"""Reading samples from files: what all data sets of files have in common."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from isoflop.lab.data.skipped import LIMIT, Skipped
from isoflop.processor import usable_cores

MOST_WORKERS = 16
"""Worker processes of one training process, unless told otherwise."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class FileData:
    """Training and test data in files, read by worker processes.

    Attributes:
        train: The training samples.
        test: The test samples.
        workers: Processes that read samples; 0 reads them in this one, None as many as are useful.
        device: Where batches come.
        record: The samples that could not be read so far.
    """

    train: Sized
    test: Sized
    workers: int | None = None
    device: torch.device = field(default=torch.device("cpu"))
    record: Skipped = field(default_factory=Skipped)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The samples that could not be read so far: split, file and reason.

        After an evaluation these are the ones of all processes.
        """
        return list(self.record)

    def to(self, device: torch.device) -> Self:
        """Return the data such that batches come on `device`."""
        return dataclasses.replace(self, device=device)

    def facts(self) -> dict[str, Any]:
        """Return nothing: the configuration says which data these are."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the samples that could not be read; the number of the epoch tells all else."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.record.replace(state["skipped"])

    def join_skipped(self) -> None:
        """Make the list of skipped samples that of all processes, which all call this."""
        self.record.join(self._limits)

    def read(
        self, reader: Dataset, shares: Any, split: str, name: Callable[[int], str]
    ) -> Iterator[Any]:
        """Iterate over batches, and note what could not be read of them.

        Args:
            reader: Returns for a share the batch, and the samples of it that could not be read: their
                numbers, with the reasons.
            shares: What to read, share by share.
            split: ``"train"`` or ``"test"``.
            name: Returns the file of a sample.

        Yields:
            The batches, still on the CPU.

        Raises:
            DataError: More samples cannot be read than is tolerated.
        """
        workers = default_workers(self.device) if self.workers is None else self.workers
        loader = DataLoader(
            reader,
            batch_size=None,  # the reader is given whole batches
            sampler=shares,
            num_workers=min(workers, len(shares)) if isinstance(shares, Sized) else workers,
            pin_memory=self.device.type == "cuda",
            # Else the loader would draw from the generator of the model's own random numbers.
            generator=torch.Generator(),
        )
        for batch, failed in loader:
            if failed:
                entries = [
                    {"split": split, "file": name(index), "reason": reason}
                    for index, reason in failed
                ]
                self.record.add(entries, self._limits)
            yield batch

    @property
    def _limits(self) -> dict[str, int]:
        return {"train": _limit(len(self.train)), "test": _limit(len(self.test))}


def read_sample(
    read: Callable[[int], _T], index: int, count: int, *, replace: bool, failed: dict[int, str]
) -> tuple[int, _T] | None:
    """Return a sample and its number.

    Args:
        read: Reads a sample by its number.
        index: The number of the wanted one.
        count: How many there are.
        replace: Whether the next one that can be read takes the place of one that cannot. In folders
            sorted by class, it mostly is of the same class.
        failed: Gets the numbers of those that cannot be read, with the reasons.

    Returns:
        None if neither the wanted one can be read, nor any that is tried in its place. These are more
        than may be unreadable in all, so the run then stops.
    """
    tries = min(count, _limit(count) + 2) if replace else 1
    for number in (index + i for i in range(tries)):
        candidate = number % count
        try:
            return candidate, read(candidate)
        except Exception as error:  # damaged files raise many kinds
            failed[candidate] = f"{type(error).__name__}: {error}"
    return None


def default_workers(device: torch.device) -> int:
    """Return how many processes should read samples for one training process.

    Reading an image takes far less than training on it with a CPU, where one process is enough and
    takes little from the training; for an accelerator it takes all cores.
    """
    if device.type == "cpu":
        return 1
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(cores, 1), MOST_WORKERS)


def _limit(count: int) -> int:
    """Return how many samples of a split may be unreadable."""
    return int(LIMIT * count)
