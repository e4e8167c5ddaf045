"""A data set of images in files, for training and evaluation.

Order and augmentation depend on the seed, the epoch and the number of the image alone: neither the
number of worker processes, nor that of training processes, nor an interruption changes a batch.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from isoflop.errors import DataError, IsoflopError
from isoflop.models.extras import require
from isoflop.training.images.files import ImageFiles, check_same_classes, find_images
from isoflop.training.images.reader import Batch, Reader, limit
from isoflop.training.images.skipped import Skipped
from isoflop.training.images.views import CentralView, RandomView
from isoflop.training.order import epoch_generator
from isoflop.training.recipes import Recipe, steps_per_epoch

TEST_BATCH = 256

MOST_WORKERS = 16
"""Worker processes of one training process, unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class ImageFolderData:
    """Images in files.

    Attributes:
        train: The training images.
        test: The test images.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the scale 0 to 1.
        size: Height and breadth of what the model sees.
        scale_jitter: Least and largest shorter side of a training image before its random crop.
        test_scale: Shorter side of a test image before its central crop.
        workers: Processes that read images; 0 reads them in this one, None as many as are useful.
        device: Where batches come.
        record: The images that could not be read so far.
    """

    train: ImageFiles
    test: ImageFiles
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int = 224
    scale_jitter: tuple[int, int] = (256, 480)
    test_scale: int = 256
    workers: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    record: Skipped = field(default_factory=Skipped)

    @property
    def samples(self) -> int:
        """Number of training images."""
        return len(self.train)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The images that could not be read so far: split, file and reason."""
        return list(self.record)

    def configured(self, recipe: Recipe, workers: int | None = None) -> "ImageFolderData":
        """Return the data set as a recipe wants it.

        Args:
            recipe: The recipe.
            workers: Processes that read images; None for as many as are useful.

        Raises:
            DataError: The number of classes is another.
            IsoflopError: The recipe's sizes contradict each other.
        """
        classes = len(self.train.classes)
        if classes != recipe.num_classes:
            raise DataError(
                f"{self.train.folder} has {classes} classes, but the recipe {recipe.name!r} expects "
                f"{recipe.num_classes}. Is the data set complete? For another data set, give "
                f"--num-classes {classes}."
            )
        channels, height, width = recipe.input_shape
        if channels != 3 or height != width:
            raise IsoflopError(f"Images are read as (3, n, n), not as {recipe.input_shape}.")
        if recipe.scale_jitter is None or recipe.test_scale is None:
            raise IsoflopError(
                f"The recipe {recipe.name!r} needs scale_jitter and test_scale to read images."
            )
        if min(*recipe.scale_jitter, recipe.test_scale) < height:
            raise IsoflopError(
                f"scale_jitter {recipe.scale_jitter} and test_scale {recipe.test_scale} must not be "
                f"smaller than the {height} pixels that are cropped."
            )
        return dataclasses.replace(
            self,
            size=height,
            scale_jitter=recipe.scale_jitter,
            test_scale=recipe.test_scale,
            workers=workers,
        )

    def to(self, device: torch.device) -> "ImageFolderData":
        """Return the data set such that its batches come on `device`."""
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
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the training set once, in random order and augmented; see `TaskData`."""
        order = torch.randperm(len(self.train), generator=epoch_generator(seed, epoch))
        batches = [
            order[start * batch_size : (start + 1) * batch_size][rank::world_size].tolist()
            for start in range(steps_per_epoch(len(self.train), batch_size, drop_last))
        ]
        view = RandomView(size=self.size, jitter=self.scale_jitter, seed=seed, epoch=epoch)
        reader = Reader(files=self.train, view=view, size=self.size, replace=True)
        return self._batches(reader, batches, "train")

    def test_batches(
        self, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over one's own share of the test set once, in order.

        Images that cannot be read have the label -1. All processes get the same number of batches, the
        last of which may be empty.
        """
        count, together = len(self.test), batch_size * world_size
        batches = [
            range(start + rank, min(start + together, count), world_size)
            for start in range(0, count, together)
        ]
        view = CentralView(size=self.size, shorter_side=self.test_scale)
        reader = Reader(files=self.test, view=view, size=self.size, replace=False)
        return self._batches(reader, batches, "test")

    def _batches(
        self, reader: Reader, batches: Sequence[Sequence[int]], split: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        workers = default_workers(self.device) if self.workers is None else self.workers
        loader = DataLoader(
            reader,
            batch_size=None,  # the reader is given whole batches
            sampler=batches,
            num_workers=min(workers, len(batches)),
            pin_memory=self.device.type == "cuda",
            # Else the loader would draw from the generator of the model's own random numbers.
            generator=torch.Generator(),
        )
        batch: Batch
        for batch in loader:
            if batch.skipped:
                self._note(reader.files, batch.skipped, split)
            images = batch.images.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
            yield self.normalize(images.permute(0, 3, 1, 2)), labels

    def normalize(self, images: Tensor) -> Tensor:
        """Turn bytes of shape (samples, 3, height, width) into floats of mean 0 and variance 1."""
        mean = 255 * torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = 255 * torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        # In place: on a CPU, memory for each step would take longer than reading the images.
        return images.float().sub_(mean).div_(std)

    def _note(self, files: ImageFiles, found: Sequence[tuple[int, str]], split: str) -> None:
        entries = [
            {"split": split, "file": f"{files.folder.name}/{files.name(index)}", "reason": reason}
            for index, reason in found
        ]
        self.record.add(entries, self._limits)

    @property
    def _limits(self) -> dict[str, int]:
        return {"train": limit(self.train), "test": limit(self.test)}

    def evaluate(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Return the `accuracy` in percent on the test images that can be read."""
        counts = torch.zeros(2, dtype=torch.long, device=accelerator.device)
        model.eval()
        batches = self.test_batches(
            TEST_BATCH, rank=accelerator.process_index, world_size=accelerator.num_processes
        )
        with torch.no_grad():
            for images, labels in batches:
                right = model(images).argmax(1) == labels
                counts += torch.stack([right.sum(), (labels >= 0).sum()])
        self.record.join(self._limits)
        right, seen = accelerator.reduce(counts).tolist()
        return {"accuracy": 100.0 * right / seen}

    def facts(self) -> dict[str, Any]:
        """Return nothing: the name of the data set tells what they are."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the images that could not be read; the number of the epoch tells all else."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.record.replace(state["skipped"])


def default_workers(device: torch.device) -> int:
    """Return how many processes should read images for one training process.

    Reading an image takes far less than training on it with a CPU, where one process is enough and
    takes little from the training; for an accelerator it takes all cores.
    """
    if device.type == "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(cores, 1), MOST_WORKERS)


def open_folder(
    folder: Path, hint: str, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> ImageFolderData:
    """Find the images of a data set: `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`.

    Args:
        folder: The folder with `train` and `val`.
        hint: What the data should look like, for error messages.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the scale 0 to 1.

    Raises:
        DataError: Folders are missing, empty, or differ in their classes.
        IsoflopError: The libraries that read images are not installed.
    """
    for library in ("simplejpeg", "PIL.Image"):
        require(library, "vision")
    train, test = (find_images(folder / split, hint) for split in ("train", "val"))
    check_same_classes(train, test, hint)
    return ImageFolderData(train=train, test=test, mean=mean, std=std)
