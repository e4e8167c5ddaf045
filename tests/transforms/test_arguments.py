"""Layers that are called in other ways than with one input."""

from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop.errors import WideningError
from isoflop.transforms import TRANSFORMS

NAMES = ("parallel", "factorized", "doped", "low_rank")


class Scaled(nn.Linear):
    def forward(self, x, scale=1.0, *, shift=None):
        y = super().forward(x) * scale
        return y if shift is None else y + shift


class Padded(nn.Conv2d):
    def forward(self, images, mode="constant"):
        return super().forward(nn.functional.pad(images, (1, 1, 1, 1), mode=mode))


class Net(nn.Module):
    """Three layers, the middle one called by `run`."""

    def __init__(self, layer, first, last, run) -> None:
        super().__init__()
        self.first, self.layer, self.last, self.run = first, layer, last, run

    def forward(self, x):
        return self.last(torch.relu(self.run(self.layer, torch.relu(self.first(x)))))


def linear(layer: nn.Module, run: Any) -> tuple[nn.Module, tuple[int, ...]]:
    return Net(layer, nn.Linear(8, 16), nn.Linear(16, 4), run), (2, 8)


def conv(layer: nn.Module, run: Any) -> tuple[nn.Module, tuple[int, ...]]:
    return Net(layer, nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), run), (2, 3, 6, 6)


def up() -> nn.Module:
    return nn.ConvTranspose2d(16, 16, 3, stride=2)


CALLS = {
    "positional": lambda: linear(Scaled(16, 16), lambda f, x: f(x, 0.5)),
    "keyword": lambda: linear(Scaled(16, 16), lambda f, x: f(x, scale=0.5)),
    "keyword only": lambda: linear(Scaled(16, 16), lambda f, x: f(x, shift=1.0)),
    "all by keyword": lambda: linear(Scaled(16, 16), lambda f, x: f(scale=0.5, x=x)),
    "input by keyword": lambda: linear(nn.Linear(16, 16), lambda f, x: f(input=x)),
    "images by keyword": lambda: conv(Padded(16, 16, 3), lambda f, x: f(images=x, mode="reflect")),
    "mode": lambda: conv(Padded(16, 16, 3), lambda f, x: f(x, "replicate")),
    "output size": lambda: conv(up(), lambda f, x: f(x, (14, 14))),
    "output size by keyword": lambda: conv(up(), lambda f, x: f(x, output_size=[14, 14])),
}


@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", NAMES)
def test_what_replaces_a_layer_takes_its_arguments(name, make):
    dense, shape = make()
    model, plan = isoflop.transform(dense, TRANSFORMS.get(name)(0.5), example_inputs=shape)
    assert {layer.source for layer in plan.sparse_layers} == {"layer"}
    x = torch.randn(shape)
    y = model(x)
    assert y.shape == dense(x).shape
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    frozen = isoflop.freeze(model, example_inputs=x)
    torch.testing.assert_close(frozen(x), model.eval()(x))


class WithBias(nn.Linear):
    """Returns the bias beside the product, as layers of parallel training do."""

    def forward(self, input: Any) -> Any:
        return super().forward(input), self.bias


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_does_not_return_a_tensor_is_refused_by_its_name(name):
    dense, shape = linear(WithBias(16, 16), lambda f, x: f(x)[0])
    with pytest.raises(WideningError, match=r"layer \(WithBias\).*Exclude 'layer'"):
        isoflop.transform(dense, TRANSFORMS.get(name)(0.5), example_inputs=shape)
