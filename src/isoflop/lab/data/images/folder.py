"""A data set of images in files, for training and evaluation.

Order and augmentation depend on the seed, the epoch and the number of the image alone: neither the
number of worker processes, nor that of training processes, nor an interruption changes a batch.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import DataError, IsoflopError
from isoflop.lab.data.images.files import ImageFiles, check_same_classes, find_images
from isoflop.lab.data.images.reader import Reader
from isoflop.lab.data.images.views import CentralView, RandomView
from isoflop.lab.data.order import epoch_generator
from isoflop.lab.data.reading import FileData
from isoflop.lab.recipes.base import Recipe, steps_per_epoch
from isoflop.optional import require

TEST_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ImageFolderData(FileData):
    """Images in files.

    Attributes:
        train: The training images.
        test: The test images.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the scale 0 to 1.
        size: Height and breadth of what the model sees.
        scale_jitter: Least and largest shorter side of a training image before its random crop.
        test_scale: Shorter side of a test image before its central crop.
    """

    train: ImageFiles
    test: ImageFiles
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int = 224
    scale_jitter: tuple[int, int] = (256, 480)
    test_scale: int = 256

    @property
    def samples(self) -> int:
        """Number of training images."""
        return len(self.train)

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
        def name(index: int) -> str:
            return f"{reader.files.folder.name}/{reader.files.name(index)}"

        for images, labels in self.read(reader, batches, split, name):
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            yield self.normalize(images.permute(0, 3, 1, 2)), labels

    def normalize(self, images: Tensor) -> Tensor:
        """Turn bytes of shape (samples, 3, height, width) into floats of mean 0 and variance 1."""
        mean = 255 * torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = 255 * torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        # In place: on a CPU, memory for each step would take longer than reading the images.
        return images.float().sub_(mean).div_(std)

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
        self.join_skipped()
        right, seen = accelerator.reduce(counts).tolist()
        return {"accuracy": 100.0 * right / seen}


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
