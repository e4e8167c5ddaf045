"""Batches of images from files, as a data set of PyTorch, so that its worker processes read them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from isoflop.lab.data.images.files import ImageFiles
from isoflop.lab.data.reading import read_sample

NO_LABEL = -1
"""Label of an image that could not be read."""


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

    def __getitem__(
        self, indices: Sequence[int]
    ) -> tuple[tuple[Tensor, Tensor], list[tuple[int, str]]]:
        """Return a batch.

        Returns:
            Bytes of shape (samples, size, size, 3), and class numbers or `NO_LABEL`; then the images
            that could not be read, and why.
        """
        images = torch.zeros(len(indices), self.size, self.size, 3, dtype=torch.uint8)
        labels = torch.full((len(indices),), NO_LABEL)
        failed: dict[int, str] = {}
        for place, index in enumerate(indices):
            found = read_sample(
                # What is random depends on the number of the image that was wanted.
                lambda candidate, index=index: self.view(self.files.read(candidate), index),
                index,
                len(self.files),
                replace=self.replace,
                failed=failed,
            )
            if found is not None:
                number, images[place] = found
                labels[place] = int(self.files.labels[number])
        return (images, labels), list(failed.items())
