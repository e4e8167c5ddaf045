"""Images with a label for every pixel in the format of Cityscapes.

`leftImg8bit/{train,val}/CITY/*_leftImg8bit.png` and `gtFine/{train,val}/CITY/*_gtFine_labelIds.png`;
see https://github.com/mcordts/cityscapesScripts.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.errors import DataError
from isoflop.lab.data.images.picture import read_labels, read_picture

IGNORED = 255
"""Label of pixels that count for nothing."""

FLIP_RATE = 0.5

_IMAGE_END, _LABELS_END = "_leftImg8bit.png", "_gtFine_labelIds.png"


@dataclass(frozen=True)
class SegmentationSample:
    """An image with the classes of its pixels.

    Attributes:
        image: Bytes of shape (channels, height, width).
        labels: Class numbers, bytes of shape (height, width).
    """

    image: Tensor
    labels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and breadth of the image."""
        return self.labels.shape[0], self.labels.shape[1]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """The images of a split.

    Attributes:
        folder: The folder of the data set.
        split: Name of the split.
        names: City and name of each image without its ending, as bytes of one length.
        table: Class number of each number in the files, 256 in all.
        channels: Channels to read: 1 or 3.
        crop: Height and breadth of the random windows of training; None for whole images.
        scale_range: Least and largest factor by which training images are scaled before.
    """

    folder: Path
    split: str
    names: np.ndarray
    table: np.ndarray
    channels: int
    crop: tuple[int, int] | None
    scale_range: tuple[float, float]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the path of an image in the folder of the data set."""
        return f"leftImg8bit/{self.split}/{os.fsdecode(self.names[index])}{_IMAGE_END}"

    def canvas(self, indices: Sequence[int]) -> tuple[int, int] | None:
        """Return the size of the windows; whole images have their own."""
        del indices
        return self.crop

    def read(self, index: int, random: np.random.Generator | None) -> SegmentationSample:
        """Return a sample: a random window, scaled and mirrored or not; or the whole image."""
        image = read_picture(self.folder / self.name(index), self.channels)
        place = f"gtFine/{self.split}/{os.fsdecode(self.names[index])}{_LABELS_END}"
        numbers = read_labels(self.folder / place)
        if numbers.shape != image.shape[1:]:
            raise ValueError(f"{place} has another size than the image")
        if random is not None and self.crop is not None:
            image, numbers = self._window(image, numbers, self.crop, random)
        return SegmentationSample(image, torch.from_numpy(self.table)[numbers.long()])

    def _window(
        self, image: Tensor, labels: Tensor, crop: tuple[int, int], random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return a random window, as if it were cut out after scaling; that spares most of the work.

        Where the scaled image is smaller than the window, so is the result.
        """
        factor = random.uniform(*self.scale_range)
        mirrored = random.random() < FLIP_RATE
        window, size = [], []
        for length, wanted in zip(labels.shape, crop, strict=True):
            span = min(length, max(1, round(wanted / factor)))
            start = int(random.integers(length - span + 1))
            window.append(slice(start, start + span))
            size.append(min(wanted, max(1, round(factor * span))))
        image, labels = image[:, *window], labels[*window]
        image = F.interpolate(image[None], tuple(size), mode="bilinear", antialias=True)[0]
        labels = F.interpolate(labels[None, None], tuple(size), mode="nearest-exact")[0, 0]
        return (image.flip(-1), labels.flip(-1)) if mirrored else (image, labels)


def find_images(folder: Path, split: str, hint: str) -> np.ndarray:
    """Find the images of a split and their labels; none is opened.

    Args:
        folder: The folder of the data set.
        split: Name of the split.
        hint: What the data should look like, for error messages.

    Returns:
        City and name of each, without its ending, as bytes of one length, sorted.

    Raises:
        DataError: There are none, or an image or its labels are missing.
    """
    images = _names(folder / "leftImg8bit" / split, _IMAGE_END, hint)
    labels = _names(folder / "gtFine" / split, _LABELS_END, hint)
    for one, other, what in ((images, labels, "labels"), (labels, images, "image")):
        missing = sorted(set(one) - set(other))
        if missing:
            raise DataError(
                f"{folder} lacks the {what} of {len(missing):,} of {len(one):,} samples of {split!r}, "
                f"such as {missing[0]}. Was it unpacked to its end? {hint}"
            )
    return np.array([os.fsencode(name) for name in sorted(images)])


def _names(folder: Path, end: str, hint: str) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. {hint}")
    cities = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    found = [
        f"{city}/{name.removesuffix(end)}"
        for city in cities
        for name in os.listdir(folder / city)
        if name.endswith(end)
    ]
    if not found:
        raise DataError(f"{folder} has no files CITY/*{end}. {hint}")
    return found
