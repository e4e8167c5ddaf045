"""A data set for segmentation, for training and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.errors import DataError, IsoflopError
from isoflop.lab.data.samples import SampleData, pad
from isoflop.lab.data.segmentation.cityscapes import (
    IGNORED,
    LabelledImages,
    SegmentationSample,
    find_images,
)
from isoflop.lab.data.segmentation.confusion import confusion_matrix, measures
from isoflop.lab.recipes.base import Recipe
from isoflop.registry import Registry

MULTIPLE = 32
"""Height and breadth of test images are padded to multiples of this."""


@dataclass(frozen=True, kw_only=True)
class SegmentationData(SampleData):
    """Images whose every pixel has a class."""

    train: LabelledImages
    test: LabelledImages

    @staticmethod
    def collate(
        samples: Sequence[SegmentationSample], canvas: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Return images, labels, and the heights and breadths that are not padding."""
        sizes = [sample.size for sample in samples]
        if canvas is None:
            height, width = (max(side) for side in zip(*sizes, strict=True))
            canvas = MULTIPLE * -(-height // MULTIPLE), MULTIPLE * -(-width // MULTIPLE)
        images = pad([sample.image for sample in samples], canvas)
        return images, pad([sample.labels for sample in samples], canvas, IGNORED), sizes

    def on_device(
        self, batch: tuple[Tensor, Tensor, list[tuple[int, int]]]
    ) -> tuple[Tensor, Tensor]:
        """Return normalised images and labels."""
        images, labels, sizes = batch
        return self.normalize(images, sizes), labels.to(self.device, non_blocking=True)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Return the measures in percent at full resolution: `miou` and `macc`."""
        model.eval()
        classes = self.recipe.num_classes
        confusion = torch.zeros(classes, classes, dtype=torch.long, device=accelerator.device)
        batches = self.test_batches(
            rank=accelerator.process_index, world_size=accelerator.num_processes
        )
        for batch in batches:
            if batch is None:
                model(self.nothing())
                continue
            images, labels = self.on_device(batch)
            confusion += confusion_matrix(model(images).argmax(1), labels, classes)
        self.join_skipped()
        return measures(accelerator.reduce(confusion))


@dataclass(frozen=True, kw_only=True)
class SegmentationSet:
    """A data set in the format of Cityscapes.

    Attributes:
        numbers: The numbers in the files that are classes, in the order of these; others are ignored.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the scale 0 to 1.
        hint: What the folder should look like.
    """

    numbers: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hint: str

    @property
    def table(self) -> np.ndarray:
        """Class number of every number in the files."""
        table = np.full(256, IGNORED, np.uint8)
        table[list(self.numbers)] = np.arange(len(self.numbers))
        return table


_FORMAT = (
    "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and "
    "gtFine/{train,val}/CITY/*_gtFine_labelIds.png"
)

SEGMENTATION_SETS: Registry[SegmentationSet] = Registry("data set for segmentation")
"""Data sets by the names that recipes give."""

SEGMENTATION_SETS.add(
    "cityscapes",
    SegmentationSet(
        # The 19 of 34 that the benchmark evaluates, road to bicycle (cityscapesScripts, labels.py).
        numbers=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        hint=f"Cityscapes needs a folder with {_FORMAT}: `--data DIR`.",
    ),
)
SEGMENTATION_SETS.add(
    "fashion-scenes",
    SegmentationSet(
        numbers=tuple(range(11)),
        mean=(0.2860,),
        std=(0.3530,),
        hint=(
            f"Scenes need a folder with {_FORMAT}: `--data DIR`. `examples/fashion_scenes.py` makes it."
        ),
    ),
)


def load_segmentation(recipe: Recipe, folder: Path | None, workers: int | None) -> SegmentationData:
    """Open a data set in the format of Cityscapes; images are read as they are needed.

    Args:
        recipe: The recipe; `input_shape` is that of a crop.
        folder: Where the data are.
        workers: Processes that read images; None for as many as are useful.

    Raises:
        DataError: Something is missing, or there are other classes than the recipe has.
        IsoflopError: The recipe wants something that cannot be read.
    """
    known = SEGMENTATION_SETS.get(recipe.dataset)
    if folder is None:
        raise DataError(f"No data folder was given. {known.hint}")
    if len(known.numbers) != recipe.num_classes:
        raise DataError(
            f"{recipe.dataset} has {len(known.numbers)} classes, but the recipe {recipe.name!r} expects "
            f"{recipe.num_classes}."
        )
    channels, height, width = recipe.input_shape
    if channels != len(known.mean) or recipe.scale_range is None:
        raise IsoflopError(
            f"Images of {recipe.dataset} are read as ({len(known.mean)}, height, width) with a "
            f"scale_range, not as {recipe.input_shape}."
        )
    train, test = (
        LabelledImages(
            folder=folder,
            split=split,
            names=find_images(folder, split, known.hint),
            table=known.table,
            channels=channels,
            crop=(height, width) if split == "train" else None,
            scale_range=recipe.scale_range,
        )
        for split in ("train", "val")
    )
    return SegmentationData(
        recipe=recipe, train=train, test=test, mean=known.mean, std=known.std, workers=workers
    )
