"""What the tests of transfer do on several processes; each process executes this module."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.lab.recipes import Recipe, get_recipe
from isoflop.lab.tasks import TASKS
from isoflop.lab.training import train
from isoflop.lab.training.distributed import build_accelerator, is_main_process

_SMALL: dict[str, Any] = {"base_width": 4, "input_shape": (1, 32, 32), "epochs": 2, "batch_size": 8}

RECIPES: dict[str, Recipe] = {
    "detection": get_recipe("fashion-scenes-detection").replace(**_SMALL),
    "segmentation": get_recipe("fashion-scenes-segmentation").replace(**_SMALL, steps=6),
}
"""Recipes of a few steps."""


def network(recipe: Recipe) -> nn.Module:
    """Return a network that finds something, though it has learned nothing."""
    torch.manual_seed(0)
    model = TASKS.get(recipe.task).build_model(recipe)
    if recipe.task == "detection":
        bias = model.get_parameter("head.classification_head.cls_logits.bias")
        nn.init.normal_(bias, -2.0, 1.0)
    return model


def evaluate(recipe: Recipe, scenes: Path) -> dict[str, float]:
    """Evaluate that network on the test scenes."""
    accelerator = build_accelerator(None, shard=False)
    data = TASKS.get(recipe.task).load(recipe, scenes, 0)
    return data.evaluate(network(recipe), accelerator)


def work(scenes: Path, classifier: Path, folder: Path) -> None:
    """Evaluate in both tasks; then train, once interrupted and once sharded."""
    options: dict[str, Any] = {"backbone": classifier, "data": scenes, "workers": 0, "quiet": True}
    for name, recipe in RECIPES.items():
        measures = evaluate(recipe, scenes)
        if is_main_process():
            (folder / f"{name}.json").write_text(json.dumps(measures))
    train(RECIPES["detection"], folder / "detection", stop_after_epochs=1, **options)
    train(RECIPES["detection"], folder / "detection", resume=True, **options)
    train(RECIPES["segmentation"], folder / "segmentation", shard=True, **options)


if __name__ == "__main__":
    work(*(Path(argument) for argument in sys.argv[1:]))
