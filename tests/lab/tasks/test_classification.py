import pytest
import torch
import torch.nn.functional as F

from isoflop.errors import DataError
from isoflop.lab.recipes import get_recipe
from isoflop.lab.tasks import TASKS

TASK = TASKS.get("classification")


def test_model_and_example_fit_the_recipe():
    recipe = get_recipe("digits")
    model = TASK.build_model(recipe)
    assert TASK.example_inputs(recipe) == (1, 1, 8, 8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_loss_smooths_labels():
    recipe = get_recipe("digits").replace(label_smoothing=0.1)
    outputs, targets = torch.randn(4, 10), torch.tensor([0, 3, 9, 3])
    expected = F.cross_entropy(outputs, targets, label_smoothing=0.1)
    assert torch.equal(TASK.loss(recipe, outputs, targets), expected)


@pytest.mark.parametrize("change", [{"num_classes": 5}, {"input_shape": (3, 8, 8)}])
def test_data_that_do_not_fit_the_recipe(change):
    with pytest.raises(DataError, match="The recipe expects"):
        TASK.load(get_recipe("digits").replace(**change), None)
