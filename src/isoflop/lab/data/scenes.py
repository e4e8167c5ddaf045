"""Scenes of several garments of Fashion-MNIST, for trying detection and segmentation on a laptop.

The same images are written twice, in the format of COCO and in that of Cityscapes.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.files import make_folder, written_aside
from isoflop.lab.data.datasets import ImageData
from isoflop.optional import require

GARMENTS = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
"""Classes 0 to 9 of Fashion-MNIST. In label maps they are 1 to 10, and 0 is the background."""

_MOST = 3
"""Garments of a scene, at most."""

_SCALES = (0.7, 1.2)
"""Least and largest size of a garment, in sizes of its image."""

_VISIBLE = 0.5
"""Part of a garment that must not be covered by others for it to count as an object."""

_CLOTH = 32
"""Least brightness of a pixel that is cloth."""


@dataclass(frozen=True)
class Scene:
    """A scene.

    Attributes:
        image: Bytes of shape (side, side).
        labels: 0 for the background, else the class and 1; bytes of shape (side, side).
        objects: Left, top, right, bottom, and class of each garment that can be seen.
    """

    image: np.ndarray
    labels: np.ndarray
    objects: list[tuple[tuple[int, int, int, int], int]]


def compose(garments: Tensor, classes: Tensor, side: int, random: np.random.Generator) -> Scene:
    """Compose a scene of random garments, sizes and places.

    Args:
        garments: Bytes of shape (count, height, width), dark where there is no cloth.
        classes: Their class numbers.
        side: Height and breadth of the scene.
        random: Source of all randomness.
    """
    image = random.integers(0, 24, (side, side)).astype(np.float32)
    owners = np.full((side, side), -1)
    chosen = random.integers(len(garments), size=random.integers(1, _MOST + 1))
    areas = []
    for number, index in enumerate(chosen):
        garment = garments[int(index)].float()[None, None]
        length = min(side, round(garment.shape[-1] * random.uniform(*_SCALES)))
        cloth = F.interpolate(garment, (length, length), mode="bilinear")[0, 0].numpy()
        top, left = random.integers(side - length + 1, size=2)
        place = (slice(top, top + length), slice(left, left + length))
        worn = cloth >= _CLOTH
        image[place] = np.where(worn, cloth, image[place])
        owners[place][worn] = number
        areas.append(int(worn.sum()))
    labels = np.zeros((side, side), np.uint8)
    objects = []
    for number, index in enumerate(chosen):
        rows, columns = np.nonzero(owners == number)
        name = int(classes[int(index)])
        labels[rows, columns] = name + 1
        if len(rows) > _VISIBLE * areas[number]:
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            objects.append((tuple(int(x) for x in box), name))
    return Scene(image.clip(0, 255).astype(np.uint8), labels, objects)


def write_scenes(
    fashion: ImageData,
    out: Path,
    *,
    train: int = 2000,
    test: int = 500,
    side: int = 64,
    seed: int = 0,
) -> None:
    """Write scenes of the training garments for training, and of the test garments for tests.

    The folder is complete or not there.

    Args:
        fashion: Fashion-MNIST, or images like it.
        out: The folder to write, as `--data` takes it for `fashion-scenes-detection` and
            `fashion-scenes-segmentation`.
        train: Number of training scenes.
        test: Number of test scenes.
        side: Height and breadth of the scenes in pixels.
        seed: Seed of everything; the same gives the same bytes.

    Raises:
        IsoflopError: There is something at `out`, or a number is no positive one.
    """
    if out.exists():
        raise IsoflopError(f"{out} is there already. Choose another folder.")
    if min(train, test, side) < 1:
        raise IsoflopError("Numbers of scenes and their side must be positive.")
    make_folder(out.parent)
    with written_aside(out) as aside:
        splits: tuple[tuple[str, Tensor, Tensor, int], ...] = (
            ("train", fashion.train_images, fashion.train_labels, train),
            ("val", fashion.test_images, fashion.test_labels, test),
        )
        for part, (split, images, labels, count) in enumerate(splits):
            scenes = (
                compose(images[:, 0], labels, side, np.random.default_rng([seed, part, number]))
                for number in range(count)
            )
            _write_split(aside, split, scenes)
        aside.rename(out)


def _write_split(folder: Path, split: str, scenes: Iterator[Scene]) -> None:
    places = {
        "annotations": folder / "annotations",
        "images": folder / f"{split}2017",
        "city": folder / "leftImg8bit" / split / "scenes",
        "labels": folder / "gtFine" / split / "scenes",
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        name = f"scenes_{number:06d}"
        height, width = scene.labels.shape
        images.append({"id": number, "file_name": f"{name}.png", "height": height, "width": width})
        for (left, top, right, bottom), label in scene.objects:
            w, h = right - left, bottom - top
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [left, top, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        picture = _png(scene.image)
        (places["images"] / f"{name}.png").write_bytes(picture)
        (places["city"] / f"{name}_leftImg8bit.png").write_bytes(picture)
        (places["labels"] / f"{name}_gtFine_labelIds.png").write_bytes(_png(scene.labels))
    categories = [{"id": i, "name": name} for i, name in enumerate(GARMENTS)]
    data = {"images": images, "annotations": objects, "categories": categories}
    (places["annotations"] / f"instances_{split}2017.json").write_text(json.dumps(data))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    require("PIL.Image", "vision").fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
