"""Small data for detection and segmentation, and a classifier whose layers are transferred."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.lab.training.transfer.worker import RECIPES

import isoflop
from isoflop.lab.data import ImageData
from isoflop.lab.data.scenes import write_scenes
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import train


def garments(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bright rectangles, whose shape tells their class, on dark ground."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    for image, label in zip(images, labels.tolist(), strict=True):
        height, width = 8 + 2 * (label // 2), 26 - 2 * label
        brightness = torch.randint(100, 256, (height, width), generator=generator)
        image[0, 1 : 1 + height, 1 : 1 + width] = brightness.byte()
    return images, labels


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training scenes and 9 test scenes of 32 × 32 pixels."""
    train_images, train_labels = garments(40, 0)
    test_images, test_labels = garments(20, 1)
    data = ImageData(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=10,
        mean=(0.3,),
        std=(0.3,),
    )
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(data, folder, train=24, test=9, side=32)
    return folder


@pytest.fixture(scope="session")
def recipes():
    """Recipes of a few steps."""
    return RECIPES


@pytest.fixture(scope="session")
def classifier_recipe():
    """Recipe of the classifier."""
    recipe = dataclasses.replace(get_recipe("digits"), epochs=1, update_every=8, base_width=4)
    return recipe.replace(model="isoflop:resnet18_cifar")


@pytest.fixture(scope="session")
def classifier(classifier_recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a sparse classifier in which every layer meets its own budget."""
    run = tmp_path_factory.mktemp("classifier") / "run"
    wide = isoflop.SparseWide(sparsity=0.75, dense_ends=False)
    train(classifier_recipe, run, transform=wide, method="rigl", scope="layers", quiet=True)
    return run
