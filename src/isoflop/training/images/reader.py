"""Batches of images from files, as a data set of PyTorch, so that its worker processes read them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from isoflop.training.images.files import ImageFiles
from isoflop.training.images.skipped import LIMIT

NO_LABEL = -1
"""Label of an image that could not be read."""


class Batch(NamedTuple):
    """Images and what else is known of them.

    Attributes:
        images: Bytes of shape (samples, size, size, 3).
        labels: Class numbers, or `NO_LABEL`.
        skipped: Numbers of images that could not be read, and why.
    """

    images: Tensor
    labels: Tensor
    skipped: list[tuple[int, str]]


@dataclass(frozen=True, kw_only=True)
class Reader(Dataset):
    """Reads the batch of the images whose numbers it is given.

    Attributes:
        files: The images.
        view: Makes bytes of shape (size, size, 3) of a file's content and an image's number.
        size: Height and breadth of the views.
        replace: Whether the next image that can be read takes the place of one that cannot, which
            otherwise has no label.
    """

    files: ImageFiles
    view: Callable[[bytes, int], Tensor]
    size: int
    replace: bool

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Return a batch."""
        images = torch.zeros(len(indices), self.size, self.size, 3, dtype=torch.uint8)
        labels = torch.full((len(indices),), NO_LABEL)
        skipped: dict[int, str] = {}
        for place, index in enumerate(indices):
            for candidate in self._candidates(index):
                try:
                    images[place] = self.view(self.files.read(candidate), index)
                except Exception as error:  # damaged files raise many kinds
                    skipped[candidate] = f"{type(error).__name__}: {error}"
                else:
                    labels[place] = int(self.files.labels[candidate])
                    break
        return Batch(images, labels, list(skipped.items()))

    def _candidates(self, index: int) -> range | list[int]:
        """Return the images to try, in order: neighbours, which mostly are of the same class.

        They are one more than may be unreadable, so if none can be read, the run is stopped.
        """
        if not self.replace:
            return [index]
        return [(index + i) % len(self.files) for i in range(limit(self.files) + 2)]


def limit(files: ImageFiles) -> int:
    """Return how many images of a split may be unreadable."""
    return int(LIMIT * len(files))
