"""Random numbers that a model draws do not move those of the user."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isoflop
from isoflop.io import export


class Noisy(nn.Module):
    """Draws random numbers in evaluation too."""

    def __init__(self, noise: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)) * self.noise(x))))


class Rebuilt(nn.Module):
    """A part whose copies are constructed anew, with new random weights, and filled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def __deepcopy__(self, memo):
        new = type(self)()
        for name, parameter in self.layer.named_parameters():
            setattr(new.layer, name, memo.get(id(parameter), parameter))
        return new

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def rebuilt() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), Rebuilt(), nn.ReLU(), nn.Linear(16, 5))


MODELS = {
    "torch": lambda: Noisy(lambda x: 1 + 0.1 * torch.rand(len(x), 1)),
    "dropout": lambda: Noisy(lambda x: nn.functional.dropout(torch.ones(len(x), 1), 0.5)),
    "Python": lambda: Noisy(lambda x: 1 + random.random()),
    "NumPy": lambda: Noisy(lambda x: 1 + np.random.rand()),  # noqa: NPY002
    "copies": rebuilt,
}

X = torch.ones(4, 12)

FUNCTIONS = {
    "profile": lambda model, _: isoflop.profile(model, X),
    "transform": lambda model, _: isoflop.transform(
        model, isoflop.SparseParallel(0.5), example_inputs=X
    ),
    "widen": lambda model, _: isoflop.transform(model, isoflop.SparseWide(0.5), example_inputs=X),
    "freeze": lambda model, _: isoflop.freeze(model, example_inputs=X),
    "export": lambda model, path: export(model, path / "model.pt2", format="pt2", example_inputs=X),
    "accelerate": lambda model, _: isoflop.accelerate(model, example_inputs=X, cache=False),
}


def state() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]  # noqa: NPY002


@pytest.mark.filterwarnings("ignore::isoflop.NoEffectWarning")
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_random_numbers_of_the_user_stay_where_they_are(make, function, tmp_path):
    model = make()
    before = state()
    function(model, tmp_path)
    assert state() == before


@pytest.mark.parametrize("name", ["torch", "dropout", "NumPy", "Python"])
def test_models_that_draw_random_numbers_are_compared_on_the_same_ones(name):
    model = MODELS[name]()
    frozen = isoflop.freeze(model, example_inputs=X)
    outputs = []
    for each in (model.eval(), frozen):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        outputs.append(each(X))
    torch.testing.assert_close(*outputs)
