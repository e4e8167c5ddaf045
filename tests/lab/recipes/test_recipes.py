import dataclasses
import inspect
import math

import pytest
import torch

from isoflop.errors import DataError, IsoflopError, UnknownNameError
from isoflop.lab.recipes.base import RECIPES, Recipe, get_recipe
from isoflop.lab.tasks import TASKS
from isoflop.model_specs import build_model


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_recipe_is_complete(name, tmp_path):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert inspect.getdoc(RECIPES.get(name))
    if name != "digits":
        with pytest.raises(DataError, match="--data"):
            TASKS.get(recipe.task).load(recipe, tmp_path / "absent")


def test_every_hyperparameter_is_described():
    source = inspect.getsource(Recipe)
    for field in dataclasses.fields(Recipe):
        line = source.index(f"    {field.name}: ")
        following = source[line:].split("\n")[1]
        assert following.strip().startswith('"""'), field.name


def test_cifar100_is_that_of_the_paper():
    recipe = get_recipe("cifar100")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum) == (200, 128, 0.1, 0.9)
    assert recipe.nesterov
    assert recipe.weight_decay == 5e-4
    assert not recipe.decay_norm_and_bias
    rates = [recipe.learning_rate(epoch * 391, 391) for epoch in (0, 59, 60, 120, 160, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.004, 0.0008, 0.0008])
    assert (recipe.alpha, recipe.update_every, recipe.end_fraction) == (0.3, 100, 0.75)


def test_pile_is_that_of_the_paper():
    recipe = get_recipe("pile")
    assert (recipe.batch_size, recipe.input_shape, recipe.weight_decay) == (256, (2048,), 0.1)
    assert (recipe.optimizer, recipe.betas, recipe.eps) == ("adamw", (0.9, 0.95), 1e-8)
    assert (recipe.clip_norm, recipe.scope) == (1.0, "layers")
    steps = recipe.steps_per_epoch(None)
    total = steps * recipe.epochs
    tokens = total * 256 * 2048
    assert tokens == pytest.approx(2.5e9, rel=0.005)
    warmup = round(375e6 / (256 * 2048))
    rates = [recipe.learning_rate(step, steps) for step in (0, warmup - 1, warmup, total - 1)]
    assert rates == pytest.approx([6e-4 / warmup, 6e-4, 6e-4, 6e-5], rel=1e-3)
    middle = recipe.learning_rate(warmup + (total - warmup) // 2, steps)
    assert middle == pytest.approx((6e-4 + 6e-5) / 2, rel=1e-3)


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("suffix", "model"),
    [
        ("mobilenet-v2", "isoflop:mobilenet_v2_cifar"),
        ("mobilevit-s", "isoflop:mobilevit_s_cifar"),
        ("botnet50", "isoflop:botnet50_cifar"),
    ],
)
def test_further_networks_for_cifar_differ_in_the_schedule(data, suffix, model):
    recipe, other = get_recipe(data), get_recipe(f"{data}-{suffix}")
    changes = {"name": f"{data}-{suffix}", "model": model, "schedule": "cosine"}
    assert other == dataclasses.replace(recipe, **changes)
    assert other.learning_rate(100 * 391, 391) == pytest.approx(0.05)
    network = TASKS.get(other.task).build_model(other)
    assert network(torch.zeros(2, *other.input_shape)).shape == (2, other.num_classes)


def test_imagenet_is_that_of_the_paper():
    recipe = get_recipe("imagenet")
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (90, 256, 0.256)
    assert (recipe.momentum, recipe.weight_decay) == (0.875, 3.0517578125e-5)
    assert not recipe.decay_norm_and_bias
    assert recipe.label_smoothing == 0.1
    assert recipe.mixed_precision == "bf16"
    assert (recipe.scale_jitter, recipe.test_scale) == ((256, 480), 256)
    rates = [recipe.learning_rate(epoch * 5004, 5004) for epoch in (0, 45, 89)]
    assert rates == pytest.approx([0.256, 0.128, 7.797e-5], rel=1e-4)
    for model in ("isoflop:resnet18", "isoflop:resnet34", "isoflop:botnet50"):
        network = build_model(model, recipe.num_classes, meta=True)
        images = torch.zeros(1, *recipe.input_shape, device="meta")
        assert network(images).shape == (1, 1000)


def test_cosine_by_epoch():
    recipe = get_recipe("digits").replace(epochs=90, lr=0.256)
    rates = [recipe.learning_rate(epoch * 7 + 6, 7) for epoch in (0, 45, 89)]
    assert rates == pytest.approx([0.256, 0.128, 7.797e-5], rel=1e-4)


def test_warmup_rises_step_by_step_to_the_full_rate():
    recipe = get_recipe("digits").replace(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [recipe.learning_rate(step, 5) for step in range(11)]
    assert rates == pytest.approx([*((step + 1) / 10 for step in range(10)), 1.0])
    assert recipe.learning_rate(49, 5) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_replace_scales_milestones_and_ignores_none():
    recipe = get_recipe("cifar100").replace(epochs=100, lr=None)
    assert recipe.milestones == (30, 60, 80)
    assert recipe.lr == 0.1
    assert get_recipe("cifar100").replace(epochs=20, milestones=(1,)).milestones == (1,)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"update_every": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"weight_decay": -1.0},
        {"momentum": math.nan},
        {"alpha": 0.0},
        {"end_fraction": 1.5},
        {"schedule": "linear"},
        {"base_width": 0},
        {"test_tokens": 0},
        {"scope": "network"},
        {"steps": 0},
        {"tokens": 0},
        {"tokens": 1000},
        {"warmup_tokens": 1000},
        {"test_scale": 0},
        {"scale_jitter": (480, 256)},
        {"scale_jitter": (0, 256)},
        {"clip_norm": 0.0},
        {"warmup_lr": -1.0},
        {"optimizer": "lion"},
        {"schedule_by": "token"},
        {"mixed_precision": "fp8"},
    ],
)
def test_impossible_values(change):
    with pytest.raises(IsoflopError, match=next(iter(change))):
        get_recipe("digits").replace(**change)


def test_poly_schedule_by_step():
    recipe = get_recipe("digits").replace(
        schedule="poly", schedule_by="step", steps=100, epochs=10, lr=0.01, final_lr=1e-4
    )
    assert recipe.steps_per_epoch(10_000) == 10
    assert recipe.learning_rate(0, 10) == 0.01
    assert recipe.learning_rate(25, 10) == pytest.approx(1e-4 + (0.01 - 1e-4) * 0.75**0.9)
    assert 1e-4 < recipe.learning_rate(99, 10) < recipe.learning_rate(98, 10)


def test_cosine_by_step_after_a_warmup_in_tokens():
    recipe = get_recipe("digits").replace(
        schedule="cosine", schedule_by="step", input_shape=(8,), batch_size=4, lr=1.0, final_lr=0.1,
        tokens=32 * 100, epochs=5, warmup_tokens=32 * 20,
    )  # fmt: skip
    steps = recipe.steps_per_epoch(None)
    assert steps == 20
    rates = [recipe.learning_rate(step, steps) for step in range(100)]
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20] == 1.0
    assert rates[60] == pytest.approx(0.55)  # half way between
    assert 0.1 < rates[99] < 0.101


def test_warmup_from_a_rate_over_steps():
    recipe = get_recipe("digits").replace(lr=1.0, warmup_steps=4, warmup_lr=0.2)
    rates = [recipe.learning_rate(step, 10) for step in range(5)]
    assert rates == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])


def test_a_stream_needs_a_length():
    with pytest.raises(IsoflopError, match="tokens"):
        get_recipe("digits").steps_per_epoch(None)


def test_steps_and_tokens_exclude_each_other():
    with pytest.raises(IsoflopError, match="not both"):
        get_recipe("digits").replace(steps=1, tokens=1)


def test_unknown_recipe():
    with pytest.raises(UnknownNameError, match="cifar100"):
        get_recipe("cifar1000")
