"""The paper's settings of detection and segmentation (appendix C.3.4)."""

import pytest
import torch
from torchvision.models import resnet18

from isoflop.flops.trace import profile
from isoflop.lab.recipes import get_recipe
from isoflop.lab.tasks import TASKS, TransferTask


def test_coco_is_trained_as_in_the_paper():
    recipe = get_recipe("coco")
    steps = 117_266 // 16
    first = recipe.learning_rate(0, steps)
    assert first == pytest.approx(2e-5 + (0.01 - 2e-5) / 500)
    assert recipe.learning_rate(499, steps) == pytest.approx(0.01)
    rates = [recipe.learning_rate(epoch * steps, steps) for epoch in (1, 7, 8, 10, 11)]
    assert rates == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4])
    assert (recipe.batch_size, recipe.epochs, recipe.weight_decay) == (16, 12, 1e-4)


def test_cityscapes_is_trained_as_in_the_paper():
    recipe = get_recipe("cityscapes")
    steps = recipe.steps_per_epoch(None)
    assert steps * recipe.epochs == 80_000
    assert recipe.learning_rate(0, steps) == 0.01
    assert recipe.learning_rate(79_999, steps) == pytest.approx(1e-4, rel=0.01)
    assert recipe.sparse_lr == 0.03
    assert (recipe.batch_size, recipe.weight_decay, recipe.scale_range) == (16, 5e-4, (0.5, 2.0))


def macs(name):
    recipe = get_recipe(name)
    task = TASKS.get(recipe.task)
    assert isinstance(task, TransferTask)
    with torch.device("meta"):
        model = task.build_model(recipe)
    return profile(model, task.example_inputs(recipe)).macs


def test_cost_of_retinanet_is_counted_for_the_largest_images():
    maps = [100 * 168, 50 * 84, 25 * 42, 13 * 21, 7 * 11]
    with torch.device("meta"):
        classifier = profile(resnet18(), (1, 3, 800, 1344))
    backbone = classifier.macs - 512 * 1000
    lateral = 256 * (128 * maps[0] + 256 * maps[1] + 512 * maps[2])
    pyramid = 9 * 256 * 256 * sum(maps)
    head = 9 * 256 * (8 * 256 + 9 * (80 + 4)) * sum(maps)
    assert macs("coco") == backbone + lateral + pyramid + head


def test_cost_of_deeplab():
    assert macs("cityscapes") == 36_646_813_696


def test_classification_takes_no_backbone():
    assert not isinstance(TASKS.get("classification"), TransferTask)
