"""Images of several sizes, each with targets of its own; what detection and segmentation share.

Order and augmentation depend on the seed, the epoch and the place of a sample in it alone: neither
the number of worker processes, nor that of training processes, nor an interruption changes a batch.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from isoflop.lab.data.order import epoch_generator
from isoflop.lab.data.reading import FileData, read_sample
from isoflop.lab.recipes.base import Recipe, steps_per_epoch

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
class SampleData(FileData, ABC):
    """Training and test data of samples that become batches on the way.

    Attributes:
        recipe: The recipe.
        train: The training samples.
        test: The test samples.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the scale 0 to 1.
    """

    recipe: Recipe
    train: Samples
    test: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]

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
        for batch in self.read(reader, order, "train", self.train.name):
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
        yield from self.read(reader, own, "test", self.test.name)
        if count % world_size and rank >= count % world_size:
            yield None

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

    data: SampleData
    samples: Samples
    entropy: tuple[int, int] | None

    def __getitem__(self, share: Share) -> tuple[Any, list[tuple[int, str]]]:
        """Return a batch, None if nothing of it can be read; and what cannot, with the reason."""
        found = []
        failed: dict[int, str] = {}
        for index, place in share.own:
            sample = read_sample(
                functools.partial(self._sample, place),
                index,
                len(self.samples),
                replace=self.entropy is not None,
                failed=failed,
            )
            if sample is not None:
                found.append(sample[1])
        batch = None
        if found:
            batch = self.data.collate(found, self.samples.canvas(share.together))
        return batch, list(failed.items())

    def _sample(self, place: int, index: int) -> Any:
        random = None if self.entropy is None else np.random.default_rng([*self.entropy, place])
        return self.samples.read(index, random)
