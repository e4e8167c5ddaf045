"""Data sets by name, and those held in memory, with augmentation computed for a whole batch at once.

Order and augmentation of an epoch depend on nothing but the seed and the epoch's number, so a
resumed run sees exactly what an uninterrupted one would have seen.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.errors import DataError
from isoflop.lab.data import idx
from isoflop.lab.data.images import ImageFolderData, open_folder
from isoflop.lab.data.order import epoch_generator
from isoflop.lab.recipes.base import Recipe, steps_per_epoch
from isoflop.optional import require
from isoflop.registry import Registry

TEST_BATCH = 512

DIGITS_TEST_SIZE = 450
DIGITS_SPLIT_SEED = 0

FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set in memory.

    Attributes:
        train_images: Bytes of shape (samples, channels, height, width).
        train_labels: Class numbers.
        test_images: As `train_images`.
        test_labels: As `train_labels`.
        num_classes: Number of classes.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the scale 0 to 1.
        scale: The largest pixel value.
        pad: Zero padding of the random crop of training images; 0 for none.
        flip: Whether half of the training images are mirrored.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: int = 255
    pad: int = 0
    flip: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_images.shape[1:])

    @property
    def samples(self) -> int:
        """Number of training images."""
        return len(self.train_labels)

    @property
    def skipped(self) -> tuple[()]:
        """Nothing: all samples have been read."""
        return ()

    def configured(self, recipe: Recipe, workers: int | None = None) -> "ImageData":
        """Return the data set as a recipe wants it, which is as it is, if it fits.

        Args:
            recipe: The recipe.
            workers: Of no use here.

        Raises:
            DataError: It has samples of another shape, or other classes.
        """
        del workers
        if self.input_shape != recipe.input_shape or self.num_classes != recipe.num_classes:
            raise DataError(
                f"The recipe expects samples of shape {recipe.input_shape} and "
                f"{recipe.num_classes} classes; the data have {self.input_shape} and "
                f"{self.num_classes}."
            )
        return self

    def to(self, device: torch.device) -> "ImageData":
        """Return the data set with its images and labels on `device`."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        }
        return ImageData(**{**self.__dict__, **moved})

    def normalize(self, images: Tensor) -> Tensor:
        """Turn bytes into floats of mean 0 and variance 1."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (images.float() / self.scale - mean) / std

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
        """Iterate over the training set once, in random order and augmented.

        Args:
            batch_size: Samples of a batch over all processes.
            seed: Seed of the run.
            epoch: Number of the epoch, which changes order and augmentation.
            drop_last: Leave out a last batch that is smaller.
            rank: Number of this process, which gets every `world_size`-th sample of a batch.
            world_size: Number of processes.
        """
        generator = epoch_generator(seed, epoch)
        count = len(self.train_labels)
        order = torch.randperm(count, generator=generator)
        device = self.train_images.device
        for start in range(
            0, steps_per_epoch(count, batch_size, drop_last) * batch_size, batch_size
        ):
            index = order[start : start + batch_size]
            shifts = torch.randint(2 * self.pad + 1, (2, len(index)), generator=generator)
            flips = torch.rand(len(index), generator=generator) < 0.5
            mine = slice(rank, None, world_size)
            index = index[mine].to(device)
            images = self.train_images[index]
            if self.pad:
                images = random_crop(images, self.pad, shifts[:, mine].to(device))
            if self.flip:
                mirror = flips[mine].to(device).view(-1, 1, 1, 1)
                images = torch.where(mirror, images.flip(-1), images)
            yield self.normalize(images), self.train_labels[index]

    def test_batches(
        self, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over one's own share of the test set once, in order.

        All processes get the same number of batches, the last of which may be empty.
        """
        together = batch_size * world_size
        for start in range(0, len(self.test_labels), together):
            part = slice(start + rank, start + together, world_size)
            yield self.normalize(self.test_images[part]), self.test_labels[part]

    def evaluate(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Return the `accuracy` on the test set in percent."""
        correct = torch.zeros((), dtype=torch.long, device=accelerator.device)
        model.eval()
        batches = self.test_batches(
            TEST_BATCH, rank=accelerator.process_index, world_size=accelerator.num_processes
        )
        with torch.no_grad():
            for images, labels in batches:
                correct += (model(images).argmax(1) == labels).sum()
        return {"accuracy": 100.0 * int(accelerator.reduce(correct)) / len(self.test_labels)}

    def facts(self) -> dict[str, Any]:
        """Return nothing: all samples are read, and the name of the data set tells the rest."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the number of the epoch tells all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing; see `state_dict`."""


def random_crop(images: Tensor, pad: int, shifts: Tensor) -> Tensor:
    """Pad images by `pad` zeros and cut out windows of the original size.

    Args:
        images: Shape (samples, channels, height, width).
        pad: Zeros on each side.
        shifts: Top and left edge of each window, of shape (2, samples), from 0 to 2 · pad.
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    device = images.device
    rows = (shifts[0, :, None] + torch.arange(height, device=device)).view(count, 1, height, 1)
    columns = (shifts[1, :, None] + torch.arange(width, device=device)).view(count, 1, 1, width)
    samples = torch.arange(count, device=device).view(-1, 1, 1, 1)
    planes = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return padded[samples, planes, rows, columns]


DATASETS: Registry[Callable[[Path | None], ImageData | ImageFolderData]] = Registry("data set")
"""Functions that load a data set from a folder."""


def load_dataset(name: str, folder: str | Path | None = None) -> ImageData | ImageFolderData:
    """Load a data set into memory, or open one whose images stay in files. Nothing is ever downloaded.

    Args:
        name: A name of `DATASETS`.
        folder: Where its files are; the digits need none.

    Raises:
        DataError: The folder or a file is missing or damaged; the message says what is needed.
    """
    return DATASETS.get(name)(None if folder is None else Path(folder))


@DATASETS.register("digits")
def digits(folder: Path | None = None) -> ImageData:
    """The 1797 handwritten digits of scikit-learn, 8×8, split 1347 to 450."""
    del folder  # scikit-learn brings the data along
    data = require("sklearn.datasets", "train").load_digits()
    split = require("sklearn.model_selection", "train").train_test_split
    train_x, test_x, train_y, test_y = split(
        data.images,
        data.target,
        test_size=DIGITS_TEST_SIZE,
        stratify=data.target,
        random_state=DIGITS_SPLIT_SEED,
    )
    return ImageData(
        train_images=torch.from_numpy(train_x).to(torch.uint8).unsqueeze(1),
        train_labels=torch.from_numpy(train_y).long(),
        test_images=torch.from_numpy(test_x).to(torch.uint8).unsqueeze(1),
        test_labels=torch.from_numpy(test_y).long(),
        num_classes=10,
        mean=(0.305,),
        std=(0.376,),
        scale=16,
    )


@DATASETS.register("fashion-mnist")
def fashion_mnist(folder: Path | None) -> ImageData:
    """Fashion-MNIST: 60,000 and 10,000 images of clothes, 28×28, from its four idx files."""
    hint = (
        f"Fashion-MNIST needs a folder with the files {', '.join(FASHION_FILES)} (plain or .gz): "
        "`--data DIR`. Debian's package `dataset-fashion-mnist` or torchvision's data set "
        "`FashionMNIST` (its folder FashionMNIST/raw) provides them."
    )
    folder = _existing(folder, hint)
    if (folder / "FashionMNIST" / "raw").is_dir():
        folder = folder / "FashionMNIST" / "raw"
    train_x, train_y, test_x, test_y = (
        idx.read_idx(folder, name, idx.IMAGES if "images" in name else idx.LABELS, hint)
        for name in FASHION_FILES
    )
    for images, labels, which in ((train_x, train_y, "training"), (test_x, test_y, "test")):
        if len(images) != len(labels):
            raise DataError(
                f"{folder} holds {len(images)} {which} images but {len(labels)} labels. {hint}"
            )
        if len(labels) == 0 or int(labels.max()) > 9:
            raise DataError(f"The {which} labels in {folder} are not the classes 0 to 9. {hint}")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise DataError(f"Training and test images in {folder} differ in size. {hint}")
    return ImageData(
        train_images=train_x.unsqueeze(1),
        train_labels=train_y.long(),
        test_images=test_x.unsqueeze(1),
        test_labels=test_y.long(),
        num_classes=10,
        mean=(0.2860,),
        std=(0.3530,),
        pad=2,
        flip=True,
    )


@DATASETS.register("cifar10")
def cifar10(folder: Path | None) -> ImageData:
    """CIFAR-10: 50,000 and 10,000 colour images, 32×32, 10 classes."""
    return _cifar("CIFAR10", folder, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@DATASETS.register("cifar100")
def cifar100(folder: Path | None) -> ImageData:
    """CIFAR-100: 50,000 and 10,000 colour images, 32×32, 100 classes."""
    mean, std = (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)  # the authors' code
    return _cifar("CIFAR100", folder, 100, mean, std)


def _cifar(
    name: str,
    folder: Path | None,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ImageData:
    dataset = getattr(require("torchvision.datasets", "vision"), name)
    hint = (
        f"{name} needs the folder that holds {dataset.base_folder}/, the unpacked "
        f"{dataset.filename} ({dataset.url}): `--data DIR`."
    )
    folder = _existing(folder, hint)
    parts = []
    for train in (True, False):
        try:
            with warnings.catch_warnings():
                # NumPy ≥ 2.4 warns about how the files of 2009 were pickled.
                warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
                part = dataset(str(folder), train=train, download=False)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{folder} lacks {name}, or it is damaged. {hint}") from error
        images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        parts += [torch.from_numpy(images), torch.tensor(part.targets)]
    return ImageData(
        train_images=parts[0],
        train_labels=parts[1],
        test_images=parts[2],
        test_labels=parts[3],
        num_classes=num_classes,
        mean=mean,
        std=std,
        pad=4,
        flip=True,
    )


@DATASETS.register("imagenet")
def imagenet(folder: Path | None) -> ImageFolderData:
    """ImageNet (ILSVRC 2012): 1,281,167 and 50,000 photographs, 1000 classes, read as they are needed."""
    hint = (
        "ImageNet needs a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, one CLASS such as "
        "n01440764 for each label: `--data DIR`. Other images sorted in this way will do as well."
    )
    folder = _existing(folder, hint)
    return open_folder(folder, hint, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _existing(folder: Path | None, hint: str) -> Path:
    if folder is None:
        raise DataError(f"No data folder was given. {hint}")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. {hint}")
    return folder
