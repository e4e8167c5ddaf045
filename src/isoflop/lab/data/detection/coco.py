"""Images with annotated boxes in the format of COCO.

`annotations/instances_{train,val}2017.json` and `{train,val}2017/*.jpg`; see
https://cocodataset.org/#format-data.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.errors import DataError
from isoflop.lab.data.images.picture import read_picture

FLIP_RATE = 0.5

_MULTIPLE = 32
"""Height and breadth of batches are multiples of this, as torchvision has it."""


@dataclass(frozen=True)
class DetectionSample:
    """An image with its objects.

    Attributes:
        image: Bytes of shape (channels, height, width).
        boxes: Left, top, right and bottom of each object, in pixels of the image.
        labels: Class numbers.
        index: Number of the sample.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    index: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and breadth of the image."""
        return self.image.shape[1], self.image.shape[2]


def canvas_of(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return height and breadth of a batch of images of these heights and breadths."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return _MULTIPLE * -(-height // _MULTIPLE), _MULTIPLE * -(-width // _MULTIPLE)


@dataclass(frozen=True, kw_only=True)
class CocoImages:
    """The images of a split; in arrays, which worker processes share.

    Attributes:
        folder: Where the image files are.
        names: Names of the files, as bytes of one length.
        sizes: Height and breadth of each image.
        first: Where the boxes of each image begin, and the end of the last.
        boxes: Left, top, right and bottom of all objects, in pixels.
        labels: Class numbers of all objects.
        channels: Channels to read: 1 or 3.
        scale: Length of the shorter side, and the most that the longer one may have.
    """

    folder: Path
    names: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    channels: int
    scale: tuple[int, int]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return folder and name of an image file."""
        return f"{self.folder.name}/{os.fsdecode(self.names[index])}"

    def canvas(self, indices: Sequence[int]) -> tuple[int, int]:
        """Return height and breadth of a batch, which is the same on all processes."""
        return canvas_of([self.scaled_size(index) for index in indices])

    def scaled_size(self, index: int) -> tuple[int, int]:
        """Return height and breadth of an image as the model sees it."""
        height, width = (int(n) for n in self.sizes[index])
        shorter, longer = self.scale
        factor = min(shorter / min(height, width), longer / max(height, width))
        return max(1, round(factor * height)), max(1, round(factor * width))

    def read(self, index: int, random: np.random.Generator | None) -> DetectionSample:
        """Return a sample, scaled, and mirrored or not if there are random numbers."""
        image = read_picture(self.folder / os.fsdecode(self.names[index]), self.channels)
        size = (int(self.sizes[index, 0]), int(self.sizes[index, 1]))
        if tuple(image.shape[1:]) != size:
            raise ValueError(f"it has {tuple(image.shape[1:])} pixels where annotations say {size}")
        height, width = self.scaled_size(index)
        image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
        own = slice(int(self.first[index]), int(self.first[index + 1]))
        factors = np.array([width / size[1], height / size[0]] * 2, np.float32)
        boxes = torch.from_numpy(self.boxes[own] * factors)
        if random is not None and random.random() < FLIP_RATE:
            image = image.flip(-1)
            left, top, right, bottom = boxes.unbind(1)
            boxes = torch.stack([width - right, top, width - left, bottom], 1)
        return DetectionSample(image, boxes, torch.from_numpy(self.labels[own]), index)


@dataclass(frozen=True, kw_only=True)
class CocoAnnotations:
    """What a file of annotations says.

    Attributes:
        path: The file.
        images: The images: `id`, `file_name`, `height`, `width`.
        objects: The objects: `id`, `image_id`, `category_id`, `bbox`, `area`, `iscrowd`.
        categories: Numbers of the categories by their names.
    """

    path: Path
    images: list[dict[str, Any]]
    objects: list[dict[str, Any]]
    categories: dict[str, int]

    @classmethod
    def read(cls, path: Path, hint: str) -> "CocoAnnotations":
        """Read a file.

        Raises:
            DataError: It is missing, cut short, or contradicts itself.
        """
        if not path.is_file():
            raise DataError(f"There is no file {path}. {hint}")
        try:
            with open(path, encoding="utf-8") as file:
                data = json.load(file)
            images = [_chosen(x, ("id", "file_name", "height", "width")) for x in data["images"]]
            objects = [
                _chosen(x, ("id", "image_id", "category_id", "bbox", "area", "iscrowd"))
                for x in data["annotations"]
            ]
            categories = {str(x["name"]): int(x["id"]) for x in data["categories"]}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged, or was not downloaded to its end: {type(error).__name__} {error}. "
                f"{hint}"
            ) from error
        if not images or not categories:
            raise DataError(f"{path} names no images, or no categories. {hint}")
        known, numbers = {x["id"] for x in images}, set(categories.values())
        for thing in objects:
            if thing["image_id"] not in known or thing["category_id"] not in numbers:
                raise DataError(
                    f"{path} has an annotation ({thing['id']}) of an image or a category that it does "
                    f"not name. {hint}"
                )
        return cls(path=path, images=images, objects=objects, categories=categories)

    def samples(
        self, folder: Path, channels: int, scale: tuple[int, int], *, train: bool, hint: str
    ) -> CocoImages:
        """Return the images, in the order of their numbers.

        Args:
            folder: Where the image files are.
            channels: Channels to read.
            scale: Length of the shorter side, and the most that the longer one may have.
            train: Leave out images without objects, crowds, and boxes without area.
            hint: What the data should look like, for error messages.

        Raises:
            DataError: Image files are missing, or no image is left.
        """
        _check_files(folder, (x["file_name"] for x in self.images), hint)
        numbers = {category: i for i, category in enumerate(sorted(self.categories.values()))}
        of_image: dict[int, list[tuple[list[float], int]]] = {x["id"]: [] for x in self.images}
        sizes = {x["id"]: (x["height"], x["width"]) for x in self.images}
        for thing in self.objects:
            height, width = sizes[thing["image_id"]]
            left, top, w, h = thing["bbox"]
            right, bottom = min(left + w, width), min(top + h, height)
            box = [max(left, 0), max(top, 0), right, bottom]
            if not thing["iscrowd"] and right > box[0] and bottom > box[1]:
                of_image[thing["image_id"]].append((box, numbers[thing["category_id"]]))
        images = sorted(self.images, key=lambda x: x["id"])
        if train:
            images = [x for x in images if of_image[x["id"]]]
            if not images:
                raise DataError(f"No image of {self.path} has an object to learn. {hint}")
        found = [of_image[x["id"]] for x in images]
        return CocoImages(
            folder=folder,
            names=np.array([os.fsencode(x["file_name"]) for x in images]),
            sizes=np.array([sizes[x["id"]] for x in images]),
            first=np.cumsum([0, *(len(things) for things in found)]),
            boxes=np.array([box for things in found for box, _ in things], np.float32).reshape(
                -1, 4
            ),
            labels=np.array([label for things in found for _, label in things], np.int64),
            channels=channels,
            scale=scale,
        )


def _chosen(record: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return what is needed of a record; most of COCO's is outlines."""
    return {key: record[key] for key in keys}


def _check_files(folder: Path, names: Iterable[str], hint: str) -> None:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. {hint}")
    present = set(os.listdir(folder))
    missing = sorted(name for name in names if name not in present)
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing):,} of the images that its annotations name, such as "
            f"{missing[0]}. Was it downloaded to its end? {hint}"
        )
