"""Small data sets of images in files."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isoflop.lab.data.datasets import load_dataset
from isoflop.lab.data.images import ImageFolderData


def picture(seed: int, height: int = 30, width: int = 40) -> np.ndarray:
    """Return smooth pixels that differ from those of any other seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (3, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    """Return an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(folder: Path, classes: int = 3, train: int = 8, test: int = 5) -> Path:
    """Write a data set in ImageNet's format, with that many images per class."""
    seed = 0
    for split, count in (("train", train), ("val", test)):
        for label in range(classes):
            place = folder / split / f"n{label:08d}"
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{split}_{number}.JPEG").write_bytes(encoded(picture(seed)))
                seed += 1
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes of 8 training and 5 test images."""
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """2 classes of 60 training and 55 test images, of which one each is damaged."""
    folder = write_folder(tmp_path / "data", classes=2, train=60, test=55)
    (folder / "train" / "n00000001" / "train_7.JPEG").write_bytes(b"no image")
    path = folder / "val" / "n00000000" / "val_3.JPEG"
    path.write_bytes(path.read_bytes()[:-200])
    return folder


def opened(folder: Path | None) -> ImageFolderData:
    """Open a data set."""
    data = load_dataset("imagenet", folder)
    assert isinstance(data, ImageFolderData)
    return data


@pytest.fixture
def data(folder: Path) -> ImageFolderData:
    """The small data set."""
    return opened(folder)
