"""Which images a folder holds, with a subfolder for each class."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.errors import DataError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")
"""Endings of the names of images; upper case is the same."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """The images of a split.

    Attributes:
        folder: The folder of the split.
        classes: Names of the classes, sorted.
        names: Names of the files with those of their classes in front, as bytes of one length, since
            a million strings would be copied into every worker process.
        labels: Class numbers.
    """

    folder: Path
    classes: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return class and file name of an image."""
        return os.fsdecode(self.names[index])

    def read(self, index: int) -> bytes:
        """Return the content of a file."""
        return (self.folder / self.name(index)).read_bytes()


def find_images(folder: Path, hint: str) -> ImageFiles:
    """Find the images of a split; none is opened.

    Args:
        folder: The folder of the split, with a subfolder for each class.
        hint: What the data should look like, for error messages.

    Raises:
        DataError: The folder is missing, has no classes, or a class without images.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. {hint}")
    with os.scandir(folder) as entries:
        classes, files = [], []
        for entry in entries:
            (classes if entry.is_dir() else files).append(entry.name)
    loose = next((name for name in files if name.lower().endswith((*EXTENSIONS, ".tar"))), None)
    if loose is not None:
        raise DataError(
            f"{folder} holds the file {loose}, which is in no class: the images must be unpacked and "
            f"sorted into a folder for each class. {hint}"
        )
    if not classes:
        raise DataError(f"{folder} has no folders, so no classes. {hint}")
    names: list[bytes] = []
    labels: list[np.ndarray] = []
    for label, name in enumerate(sorted(classes)):
        found = [n for n in os.listdir(folder / name) if n.lower().endswith(EXTENSIONS)]
        if not found:
            raise DataError(f"The class {name} in {folder} has no images. {hint}")
        names += [os.fsencode(f"{name}/{image}") for image in sorted(found)]
        labels.append(np.full(len(found), label))
    return ImageFiles(
        folder=folder,
        classes=tuple(sorted(classes)),
        names=np.array(names),
        labels=np.concatenate(labels),
    )


def check_same_classes(train: ImageFiles, test: ImageFiles, hint: str) -> None:
    """Raise `DataError` unless two splits have the same classes."""
    for one, other in ((train, test), (test, train)):
        missing = sorted(set(one.classes) - set(other.classes))
        if missing:
            raise DataError(
                f"{other.folder} lacks {_count(missing)} of {one.folder}: {_few(missing)}. Is the "
                f"data set complete? {hint}"
            )


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} class" + "es" * (len(names) != 1)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)
