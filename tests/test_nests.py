"""Outputs and inputs are found in whatever object they come."""

import collections
import collections.abc
import dataclasses
import types
from typing import Any, NamedTuple

import pytest
import torch
from torch import distributions, nn

import isoflop
from isoflop.errors import InputError
from isoflop.flops.trace import network_ends, profile


class Own:
    def __init__(self, logits):
        self.logits = logits


class Slots:
    __slots__ = ("logits",)

    def __init__(self, logits):
        self.logits = logits


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: Any


class Pair(NamedTuple):
    logits: Any


class View(collections.abc.Mapping):
    def __init__(self, logits):
        self._items = {"logits": logits}

    def __getitem__(self, key):
        return self._items[key]

    def __iter__(self):
        return iter(self._items)

    def __len__(self):
        return 1


CONTAINERS = {
    "own class": Own,
    "slots": Slots,
    "dataclass": Frozen,
    "named tuple": Pair,
    "mapping": View,
    "user dict": lambda x: collections.UserDict(logits=x),
    "ordered dict": lambda x: collections.OrderedDict(logits=x),
    "deque": lambda x: collections.deque([x]),
    "namespace": lambda x: types.SimpleNamespace(logits=x),
    "nested": lambda x: [{"a": (Own(Frozen(x)), 3)}],
    "distribution": lambda x: distributions.Normal(x, 1.0, validate_args=False),
}


class Net(nn.Module):
    def __init__(self, wrap, unwrap=lambda x: x):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
        self.head = nn.Linear(12, 6)
        self.wrap, self.unwrap = wrap, unwrap

    def forward(self, x):
        return self.wrap(self.head(self.body(self.unwrap(x))))


@pytest.mark.parametrize("name", CONTAINERS)
def test_outputs_keep_their_size_and_end_the_network(name):
    net = Net(CONTAINERS[name])
    assert network_ends(net, (5, 8)) == ({"body.0"}, {"head"})
    wide, plan = isoflop.transform(net, isoflop.SparseWide(0.5), example_inputs=(5, 8))
    assert tuple(wide.get_parameter("head.weight").shape) == (6, 17)
    assert [layer.parameter for layer in plan.sparse_layers] == ["body.2.weight"]


HIDDEN = {"nothing": lambda x: None, "a closure": lambda x: lambda: x, "a number": lambda x: 3}


@pytest.mark.parametrize("name", HIDDEN)
def test_outputs_that_are_not_found_are_refused(name):
    net = Net(HIDDEN[name])
    with pytest.raises(InputError, match=r"Net returned .* in which no tensor was found"):
        isoflop.transform(net, isoflop.SparseWide(0.75), example_inputs=(5, 8))


INPUTS = {
    "own class": (Own, lambda data: data.logits),
    "slots": (Slots, lambda data: data.logits),
    "dataclass": (Frozen, lambda data: data.logits),
    "user dict": (lambda x: collections.UserDict(x=x), lambda data: data["x"]),
    "nested": (lambda x: [Own({"x": x})], lambda data: data[0].logits["x"]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_begin_the_network(name):
    wrap, unwrap = INPUTS[name]
    net, x = Net(lambda y: y, unwrap), torch.zeros(5, 8)
    given = wrap(x)
    assert network_ends(net, (given,)) == ({"body.0"}, {"head"})
    assert unwrap(given) is x


@pytest.mark.parametrize("inputs", [("text",), (3, None)])
def test_inputs_without_tensors_are_refused(inputs):
    with pytest.raises(InputError, match="No tensor was found in the example inputs of Net"):
        profile(Net(lambda x: x), inputs)
