import dataclasses
import inspect
import math

import pytest

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.training.data import DATASETS
from isoflop.training.recipes import RECIPES, Recipe, get_recipe


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_recipe_is_complete(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe.dataset in DATASETS.names()
    assert inspect.getdoc(RECIPES.get(name))


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
    ],
)
def test_impossible_values(change):
    with pytest.raises(IsoflopError, match=next(iter(change))):
        get_recipe("digits").replace(**change)


def test_unknown_recipe():
    with pytest.raises(UnknownNameError, match="cifar100"):
        get_recipe("cifar1000")
