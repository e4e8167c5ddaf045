"""Layers that models hold in other places than as registered children."""

import collections
import functools
from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop.errors import WideningError
from isoflop.flops.replaced import check_replaced
from isoflop.surgery import replace_modules

Pair = collections.namedtuple("Pair", ["first", "second"])


class Net(nn.Module):
    """Three layers, the middle one called by `run`."""

    def __init__(self, hold: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.held, self.run = hold(self)

    def forward(self, x):
        return self.c(self.run(self.held, self.a(x)))


class Holder:
    def __init__(self, layer):
        self.layer = layer

    def call(self, x):
        return self.layer(x)


class Slots:
    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer


def closure(layer):
    return None, lambda held, x: layer(x)


def keyword_default(inner):
    def run(held, x, *, layer=inner):
        return layer(x)

    return run


def global_layer(net):
    globals()["LAYER"] = net.b
    return None, lambda held, x: LAYER(x)  # noqa: F821 # pyright: ignore[reportUndefinedVariable]


FOLLOWED = {
    "attribute": lambda net: ({"b": net.b}, lambda held, x: held["b"](x)),
    "list": lambda net: ([net.b], lambda held, x: held[0](x)),
    "tuple": lambda net: ((1, net.b), lambda held, x: held[1](x)),
    "named tuple": lambda net: (Pair(net.a, net.b), lambda held, x: held.second(x)),
    "nest": lambda net: ({"k": [("b", {"x": net.b})]}, lambda held, x: held["k"][0][1]["x"](x)),
    "deque": lambda net: (collections.deque([net.b]), lambda held, x: held[0](x)),
    "partial": lambda net: (functools.partial(net.b), lambda held, x: held(x)),
    "partial of a function": lambda net: (
        functools.partial(lambda layer, x: layer(x), net.b),
        lambda held, x: held(x),
    ),
    "bound call": lambda net: (net.b.__call__, lambda held, x: held(x)),
    "object": lambda net: (Holder(net.b), lambda held, x: held.layer(x)),
    "slots": lambda net: (Slots(net.b), lambda held, x: held.layer(x)),
    "method of an object": lambda net: (Holder(net.b).call, lambda held, x: held(x)),
    "object in a list": lambda net: ([Holder([net.b])], lambda held, x: held[0].layer[0](x)),
    "set": lambda net: ({net.b}, lambda held, x: next(iter(held))(x)),
    "closure": lambda net: closure(net.b),
    "closure of a list": lambda net: closure(
        functools.partial(lambda layers, x: layers[0](x), [net.b])
    ),
    "held closure": lambda net: (closure(net.b)[1], lambda held, x: held(None, x)),
    "default": lambda net: (None, lambda held, x, layer=net.b: layer(x)),
    "keyword default": lambda net: (None, keyword_default(net.b)),
    "decorated": lambda net: (None, functools.wraps(closure)(closure(net.b)[1])),
    "unregistered module": lambda net: ([nn.Sequential(net.b)], lambda held, x: held[0](x)),
    "global": global_layer,
}


@pytest.mark.parametrize("hold", FOLLOWED.values(), ids=FOLLOWED)
@pytest.mark.parametrize("kind", [isoflop.SparseParallel, isoflop.SparseDoped, isoflop.LowRank])
def test_layers_in_containers_are_replaced_there_too(hold, kind):
    model, plan = isoflop.transform(Net(hold), kind(0.75), example_inputs=(2, 8))
    assert {layer.source for layer in plan.sparse_layers} == {"b"}
    model(torch.ones(2, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_bound_forward_is_replaced_and_other_methods_are_not():
    net = Net(lambda net: ([net.b.forward, net.b.extra_repr], None))
    new = nn.Linear(16, 16)
    replace_modules(net, {net.b: new})
    assert net.held[0].__self__ is new
    assert net.held[1].__self__ is not new


def test_a_layer_held_where_it_is_not_found_is_refused_by_name():
    net = Net(lambda net: ({net.b: "b"}, lambda held, x: next(iter(held))(x)))
    with pytest.raises(WideningError, match=r"b \(Linear\).*still runs the old layer"):
        isoflop.transform(net, isoflop.SparseParallel(0.75), example_inputs=(2, 8))


def test_a_new_layer_that_is_never_called_is_refused():
    net = Net(lambda net: (None, lambda held, x: x))
    old = net.b
    replace_modules(net, {old: (new := nn.Linear(16, 16))})
    with pytest.raises(WideningError, match="does not call the new one"):
        check_replaced(net, (2, 8), {"b": (old, new)})
    replace_modules(net, {new: old})
    assert net.b is old


def test_attention_held_elsewhere_is_refused_by_name():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.held = {self.attention: "attention"}

        def forward(self, x):
            x = self.first(x)
            return self.last(next(iter(self.held))(x, x, x)[0])

    with pytest.raises(WideningError, match=r"attention.*still runs the old layer"):
        isoflop.transform(Attending(), isoflop.SparseParallel(0.5), example_inputs=(2, 5, 8))
