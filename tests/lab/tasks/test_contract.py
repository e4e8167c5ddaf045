"""What holds for the task of every recipe."""

import pytest

from isoflop.lab.recipes.base import RECIPES, get_recipe
from isoflop.lab.tasks import TASKS


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_recipe_has_a_task(name):
    task = TASKS.get(get_recipe(name).task)
    assert task.metric.name in task.metric.text(1.5)


@pytest.mark.parametrize("name", TASKS.names())
def test_the_better_of_two_results(name):
    metric = TASKS.get(name).metric
    expected = 2.0 if metric.higher_is_better else 1.0
    assert metric.better(1.0, 2.0) == metric.better(2.0, 1.0) == expected
