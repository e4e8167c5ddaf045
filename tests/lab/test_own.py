"""Somebody's own method, pattern, transform, model, data set and recipe, a file each."""

import json
import subprocess
import sys

import pytest

import isoflop

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from isoflop.methods import METHODS, DropGrow
from isoflop.methods.growth import RANDOM


@METHODS.register("own_method")
@dataclass(frozen=True, kw_only=True)
class OwnMethod(DropGrow):
    """Drop by the magnitude relative to the other weights of an output, grow at random."""

    grow_by: ClassVar = RANDOM
    update_every: int = 2

    def drop_scores(self, weight, mask):
        size = weight.abs().flatten(1)
        return (size / size.sum(1, keepdim=True)).view_as(weight)
'''

PATTERN = '''
from dataclasses import dataclass

from isoflop.patterns import PATTERNS, Unstructured


@PATTERNS.register("own_pattern")
@dataclass(frozen=True, kw_only=True)
class OwnPattern(Unstructured):
    """An even number of weights."""

    def __str__(self):
        return "own_pattern"

    def count(self, shape, nnz):
        return max(2, super().count(shape, nnz) // 2 * 2)
'''

TRANSFORM = '''
from dataclasses import dataclass

from isoflop.transforms import TRANSFORMS, SparseWide


@TRANSFORMS.register("own_transform")
@dataclass(frozen=True)
class OwnTransform(SparseWide):
    """Sparse Wide in widths that are multiples of 4."""

    multiple_of: int = 4
'''

MODEL = '''
from torch import nn

from isoflop.model_registry import register_model


@register_model("own_model", (1, 4, 4))
def own_model(num_classes=3, in_channels=1):
    """Three layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16 * in_channels, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, num_classes),
    )
'''

DATA = '''
import torch

from isoflop.lab.data import DATASETS, ImageData


@DATASETS.register("own_data")
def own_data(folder=None):
    """Images whose brightness is their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    noise = torch.randint(0, 40, (96, 1, 4, 4), generator=generator)
    images = (noise + 100 * labels.view(-1, 1, 1, 1)).clamp(max=255).to(torch.uint8)
    return ImageData(
        train_images=images[:72], train_labels=labels[:72],
        test_images=images[72:], test_labels=labels[72:],
        num_classes=3, mean=(0.5,), std=(0.3,),
    )
'''

RECIPE = '''
from isoflop.lab.recipes import RECIPES, Recipe


@RECIPES.register("own_recipe")
def own_recipe():
    """Two epochs."""
    return Recipe(
        name="own_recipe", dataset="own_data", model="isoflop:own_model", num_classes=3,
        input_shape=(1, 4, 4), epochs=2, batch_size=8, schedule="cosine",
    )
'''

TABLE = '''
from isoflop.lab.reproduce import TABLES
from isoflop.lab.reproduce.grid import Grid, Row


@TABLES.register("own_table")
def own_table(preset):
    """One run."""
    # Nothing here is of an own class, which its process would import by itself.
    source = preset.train("own_recipe", method="rigl", sparsity=0.5)
    return Grid(title="One run", rows=(Row(labels={"method": "own"}, source=source),), seeds=1)
'''

FILES = {
    "method": METHOD, "pattern": PATTERN, "transform": TRANSFORM, "model": MODEL, "data": DATA,
    "recipe": RECIPE, "table": TABLE,
}  # fmt: skip


@pytest.fixture
def package(tmp_path):
    """Folder with a package, whose modules register what they define."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    imports = "".join(f"import own.{name}\n" for name in FILES)
    (folder / "__init__.py").write_text(imports)
    return tmp_path


def run(folder, *args):
    command = [sys.executable, "-m", "isoflop.lab.cli", "--import", "own", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_of_it_trains_from_the_command_line(package):
    listed = run(package, "list")
    for name in ("method", "pattern", "transform", "model", "recipe"):
        assert f"own_{name}" in listed
    options = ("--transform", "own_transform", "--sparsity", "0.75", "--sparse-ends")
    options += ("--method", "own_method", "--pattern", "own_pattern", "--quiet")
    run(package, "train", "own_recipe", "--out", "run", *options)
    config = json.loads((package / "run" / "config.json").read_text())
    assert (config["method"], config["pattern"]) == ("own_method", "own_pattern")
    plan = isoflop.Plan.load(package / "run" / "plan.json")
    assert all(layer.nnz % 2 == 0 for layer in plan.sparse_layers)
    assert {layer.shape for layer in plan.layers} >= {(32, 16), (32, 32)}
    changes = (package / "run" / "masks.jsonl").read_text().splitlines()
    assert len(changes) > 2
    # What reads a run finds them again.
    assert "accuracy" in run(package, "evaluate", "run")
    run(package, "report", "run", "--out", "page.html")
    assert "Own Transform" in (package / "page.html").read_text()


def test_a_table_of_it_is_made_in_other_processes(package):
    run(package, "reproduce", "own_table", "--out", "tables", "--jobs", "2")
    table = json.loads((package / "tables" / "own_table.json").read_text())
    assert table["failed"] == []
    assert table["rows"][0]["seeds"] == 1
