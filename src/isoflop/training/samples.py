"""Samples that stay in files, read one by one by worker processes; what several tasks share.

Order and augmentation depend on the seed, the epoch and the place of a sample in it alone: neither
the number of worker processes, nor that of training processes, nor an interruption changes a batch.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from isoflop.training.images.folder import default_workers
from isoflop.training.images.skipped import LIMIT, Skipped
from isoflop.training.order import epoch_generator
from isoflop.training.recipes import Recipe, steps_per_epoch

_SMALL = 64
"""Height and breadth of an image that every network takes."""


class Samples(Protocol):
    """The samples of a split."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the file of a sample."""
        ...

    def canvas(self, indices: Sequence[int]) -> tuple[int, int] | None:
        """Return height and breadth of a batch of samples, if that is known before they are read."""
        ...

    def read(self, index: int, random: np.random.Generator | None) -> Any:
        """Return a sample: augmented with these random numbers, or as it is in tests.

        Raises:
            Exception: The sample cannot be read; many kinds.
        """
        ...


class Share(NamedTuple):
    """What one process reads of a batch.

    Attributes:
        own: Samples that it reads, each with its place in the epoch.
        together: Samples that all processes read.
    """

    own: list[tuple[int, int]]
    together: list[int]


@dataclass(frozen=True, kw_only=True)
class FileData(ABC):
    """Training and test data in files.

    Attributes:
        recipe: The recipe.
        train: The training samples.
        test: The test samples.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the scale 0 to 1.
        workers: Processes that read samples; 0 reads them in this one, None as many as are useful.
        device: Where batches come.
        record: The samples that could not be read so far.
    """

    recipe: Recipe
    train: Samples
    test: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int | None = None
    device: torch.device = field(default=torch.device("cpu"))
    record: Skipped = field(default_factory=Skipped)

    @staticmethod
    @abstractmethod
    def collate(samples: Sequence[Any], canvas: tuple[int, int] | None) -> Any:
        """Return samples as one batch of bytes, still on the CPU.

        Args:
            samples: What the splits returned.
            canvas: Least height and breadth; None for what the samples need.
        """

    @abstractmethod
    def on_device(self, batch: Any) -> tuple[Tensor, Any]:
        """Return inputs of the model and targets of the loss from what `collate` returned."""

    @property
    def samples(self) -> int | None:
        """Number of training samples; None if the recipe passes over them until its steps are done."""
        return None if self.recipe.steps is not None else len(self.train)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The samples that could not be read so far; after an evaluation, by any process."""
        return list(self.record)

    def to(self, device: torch.device) -> "FileData":
        """Return the data such that batches come on `device`."""
        return dataclasses.replace(self, device=device)

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[tuple[Tensor, Any]]:
        """Iterate over the training samples, in random order and augmented; see `TaskData`.

        They come once, or again and again if `samples` is None.
        """
        order = _Order(
            count=len(self.train),
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            steps=None
            if self.samples is None
            else steps_per_epoch(len(self.train), batch_size, drop_last),
            rank=rank,
            world_size=world_size,
        )
        reader = _Reader(data=self, samples=self.train, entropy=(seed, epoch))
        for batch in self._read(reader, order, "train"):
            yield self.on_device(batch)

    def test_batches(self, *, rank: int, world_size: int) -> Iterator[Any]:
        """Iterate over one's own share of the test samples, in order, each in a batch of its own.

        All processes get equally many batches. One is None if there is no sample for it, or if that
        cannot be read.

        Yields:
            What `collate` returned, or None.
        """
        count = len(self.test)
        own = [Share([(i, i)], [i]) for i in range(rank, count, world_size)]
        reader = _Reader(data=self, samples=self.test, entropy=None)
        yield from self._read(reader, own, "test")
        if count % world_size and rank >= count % world_size:
            yield None

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

    def normalize(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Turn bytes into floats of mean 0 and variance 1, on the device.

        Args:
            images: Shape (samples, channels, height, width).
            sizes: Height and breadth of each image; what is padded becomes 0.
        """
        images = images.to(self.device, non_blocking=True).float()
        mean = torch.tensor(self.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, -1, 1, 1)
        images = (images / 255 - mean) / std
        for image, (height, width) in zip(images, sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return images

    def nothing(self) -> Tensor:
        """Return an input for a forward pass in which a process has no sample."""
        return torch.zeros(1, len(self.mean), _SMALL, _SMALL, device=self.device)

    @abstractmethod
    def evaluate(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Return the measures of a model on the test samples; see `TaskData`."""

    def _read(self, reader: "_Reader", shares: Any, split: str) -> Iterator[Any]:
        loader = DataLoader(
            reader,
            batch_size=None,  # the reader is given whole batches
            sampler=shares,
            num_workers=default_workers(self.device) if self.workers is None else self.workers,
            pin_memory=self.device.type == "cuda",
            # Else the loader would draw from the generator of the model's own random numbers.
            generator=torch.Generator(),
        )
        for batch, failed in loader:
            if failed:
                entries = [
                    {"split": split, "file": reader.samples.name(index), "reason": reason}
                    for index, reason in failed
                ]
                self.record.add(entries, self._limits)
            yield batch

    @property
    def _limits(self) -> dict[str, int]:
        return {"train": _limit(self.train), "test": _limit(self.test)}


def pad(images: Sequence[Tensor], canvas: tuple[int, int], value: int = 0) -> Tensor:
    """Return images of several sizes in the upper left of a common one.

    Args:
        images: Bytes of shape (…, height, width).
        canvas: Height and breadth of the result.
        value: What is around them.
    """
    padded = images[0].new_full((len(images), *images[0].shape[:-2], *canvas), value)
    for place, image in zip(padded, images, strict=True):
        place[..., : image.shape[-2], : image.shape[-1]] = image
    return padded


@dataclass(frozen=True, kw_only=True)
class _Order(Sampler):
    """What one process reads in an epoch, batch by batch.

    Attributes:
        count: Number of samples.
        batch_size: Samples of a batch over all processes.
        seed: Seed of the run.
        epoch: Number of the epoch.
        steps: Number of batches; None for no end, the samples in another order in every pass.
        rank: Number of the process.
        world_size: Number of processes.
    """

    count: int
    batch_size: int
    seed: int
    epoch: int
    steps: int | None
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[Share]:
        generator = epoch_generator(self.seed, self.epoch)
        order: list[int] = []
        step = 0
        while self.steps is None or step < self.steps:
            if len(order) < self.batch_size and (self.steps is None or step == 0):
                order += torch.randperm(self.count, generator=generator).tolist()
            together, order = order[: self.batch_size], order[self.batch_size :]
            numbers = range(step * self.batch_size, step * self.batch_size + len(together))
            own = list(zip(together, numbers, strict=True))[self.rank :: self.world_size]
            yield Share(own, together)
            step += 1


@dataclass(frozen=True, kw_only=True)
class _Reader(Dataset):
    """Reads the batches whose samples it is given.

    Attributes:
        data: Says how samples become a batch.
        samples: The samples.
        entropy: Seed and epoch in training, where the next sample that can be read takes the place of
            one that cannot; None in tests.
    """

    data: FileData
    samples: Samples
    entropy: tuple[int, int] | None

    def __getitem__(self, share: Share) -> tuple[Any, list[tuple[int, str]]]:
        """Return a batch, None if nothing of it can be read; and what cannot, with the reason."""
        found = []
        failed: dict[int, str] = {}
        for index, place in share.own:
            for candidate in self._candidates(index):
                random = None
                if self.entropy is not None:
                    random = np.random.default_rng([*self.entropy, place])
                try:
                    found.append(self.samples.read(candidate, random))
                except Exception as error:  # damaged files raise many kinds
                    failed[candidate] = f"{type(error).__name__}: {error}"
                else:
                    break
        batch = None
        if found:
            batch = self.data.collate(found, self.samples.canvas(share.together))
        return batch, list(failed.items())

    def _candidates(self, index: int) -> list[int]:
        """Return the samples to try, in order; one more than may be unreadable in all."""
        if self.entropy is None:
            return [index]
        count = len(self.samples)
        return [(index + i) % count for i in range(min(count, _limit(self.samples) + 2))]


def _limit(samples: Samples) -> int:
    """Return how many samples of a split may be unreadable."""
    return int(LIMIT * len(samples))
