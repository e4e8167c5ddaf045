"""A data set for detection, for training and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import DataError, IsoflopError
from isoflop.lab.data.detection.coco import (
    CocoAnnotations,
    CocoImages,
    DetectionSample,
    canvas_of,
)
from isoflop.lab.data.detection.precision import average_precision
from isoflop.lab.data.detection.rules import detections
from isoflop.lab.data.samples import SampleData, pad
from isoflop.lab.recipes.base import Recipe
from isoflop.optional import require
from isoflop.registry import Registry


@dataclass(frozen=True, kw_only=True)
class DetectionData(SampleData):
    """Images with boxes.

    Attributes:
        truth: What is to be found in the test images.
    """

    train: CocoImages
    test: CocoImages
    truth: CocoAnnotations

    @staticmethod
    def collate(
        samples: Sequence[DetectionSample], canvas: tuple[int, int] | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return images, (samples, channels, height, width), and what is known of each."""
        # An image in the place of one that could not be read may be larger.
        least = [] if canvas is None else [canvas]
        canvas = canvas_of([*least, *(sample.size for sample in samples)])
        images = pad([sample.image for sample in samples], canvas)
        targets = [
            {
                "boxes": sample.boxes,
                "labels": sample.labels,
                "canvas": canvas,
                "size": sample.size,
                "index": sample.index,
            }
            for sample in samples
        ]
        return images, targets

    def on_device(
        self, batch: tuple[Tensor, list[dict[str, Any]]]
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return normalised images, and the targets of `isoflop.lab.data.detection.rules.loss`."""
        images, targets = batch
        for target in targets:
            for key in ("boxes", "labels"):
                target[key] = target[key].to(self.device, non_blocking=True)
        return self.normalize(images, [target["size"] for target in targets]), targets

    @torch.no_grad()
    def evaluate(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Return COCO's average precisions in percent: `ap`, `ap50`, `ap75`, and `ap_small` etc.

        Images are looked at one by one, so that none is padded by what others need.
        """
        model.eval()
        numbers = sorted(image["id"] for image in self.truth.images)
        categories = sorted(self.truth.categories.values())
        found: list[dict[str, Any]] = []
        seen: list[int] = []
        batches = self.test_batches(
            rank=accelerator.process_index, world_size=accelerator.num_processes
        )
        for batch in batches:
            if batch is None:
                model(self.nothing())
                continue
            images, (target,) = self.on_device(batch)
            outputs = model(images)
            seen.append(numbers[target["index"]])
            objects = detections(self.recipe.model, outputs, target["canvas"], target["size"])
            height, width = self.test.sizes[target["index"]]
            factors = torch.tensor(
                [width / target["size"][1], height / target["size"][0]] * 2, dtype=torch.float64
            )
            boxes = objects["boxes"].cpu().double() * factors
            boxes[:, 2:] -= boxes[:, :2]
            for box, score, label in zip(
                boxes.tolist(),
                objects["scores"].tolist(),
                objects["labels"].tolist(),
                strict=True,
            ):
                found.append(
                    {
                        "image_id": seen[-1],
                        "category_id": categories[label],
                        "bbox": box,
                        "score": score,
                    }
                )
        self.join_skipped()
        if accelerator.num_processes > 1:
            gather = require("accelerate.utils", "train").gather_object
            found, seen = gather(found), gather(seen)
        return average_precision(self.truth, found, seen)


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """A data set in COCO's format.

    Attributes:
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the scale 0 to 1.
        hint: What the folder should look like.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    hint: str


_FORMAT = "annotations/instances_{train,val}2017.json, train2017/ and val2017/"

DETECTION_SETS: Registry[DetectionSet] = Registry("data set for detection")
"""Data sets by the names that recipes give."""

DETECTION_SETS.add(
    "coco",
    DetectionSet(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        hint=f"COCO needs a folder with {_FORMAT}: `--data DIR`. Other data in this format do as well.",
    ),
)
DETECTION_SETS.add(
    "fashion-scenes",
    DetectionSet(
        mean=(0.2860,),
        std=(0.3530,),
        hint=(
            f"Scenes need a folder with {_FORMAT}: `--data DIR`. `examples/fashion_scenes.py` makes it."
        ),
    ),
)


def load_detection(recipe: Recipe, folder: Path | None, workers: int | None) -> DetectionData:
    """Open a data set in COCO's format; images are read as they are needed.

    Args:
        recipe: The recipe; `input_shape` is the channels, the length of the images' shorter side, and
            the most that the longer side may have.
        folder: Where the data are.
        workers: Processes that read images; None for as many as are useful.

    Raises:
        DataError: Something is missing or damaged, or there are other classes than the recipe has.
        IsoflopError: The recipe wants something that cannot be read.
    """
    known = DETECTION_SETS.get(recipe.dataset)
    if folder is None:
        raise DataError(f"No data folder was given. {known.hint}")
    channels, shorter, longer = recipe.input_shape
    if channels != len(known.mean) or shorter > longer:
        raise IsoflopError(
            f"Images of {recipe.dataset} are read as ({len(known.mean)}, shorter side, longer side), "
            f"not as {recipe.input_shape}."
        )
    train, test = (
        CocoAnnotations.read(folder / "annotations" / f"instances_{split}2017.json", known.hint)
        for split in ("train", "val")
    )
    if train.categories != test.categories:
        raise DataError(f"{train.path} and {test.path} have different categories. {known.hint}")
    if len(train.categories) != recipe.num_classes:
        raise DataError(
            f"{folder} has {len(train.categories)} categories, but the recipe {recipe.name!r} expects "
            f"{recipe.num_classes}. For another data set, give --num-classes {len(train.categories)}."
        )
    samples = (
        annotations.samples(
            folder / f"{split}2017",
            channels,
            (shorter, longer),
            train=split == "train",
            hint=known.hint,
        )
        for split, annotations in (("train", train), ("val", test))
    )
    train_images, test_images = samples
    return DetectionData(
        recipe=recipe,
        train=train_images,
        test=test_images,
        mean=known.mean,
        std=known.std,
        workers=workers,
        truth=test,
    )
