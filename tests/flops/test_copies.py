"""Copies share nothing with their original, by whatever way that holds its parts."""

import functools
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isoflop
from isoflop.errors import IsoflopError
from isoflop.flops.copies import copy_with_tensors
from isoflop.flops.trace import profile
from isoflop.masks import set_mask
from isoflop.transforms import TRANSFORMS

HERE: dict[str, Any] = {}


class Held:
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


class Net(nn.Module):
    """Two masked layers; the second is reached by `reach`."""

    reach: Any

    def __init__(self, way):
        super().__init__()
        self.a, self.b = (nn.Linear(8, 8, bias=False) for _ in range(2))
        for layer in (self.a, self.b):
            mask = torch.zeros(8, 8, dtype=torch.bool)
            mask[:4] = True
            set_mask(layer, "weight", mask)
        WAYS[way](self)

    def middle(self, x):
        return self.b(x)

    def forward(self, x):
        return self.reach(self.a(x))


def _proxy(net):
    net.other = weakref.proxy(net.b)
    net.reach = lambda x: net.other.forward(x)


def _nested(net):
    def inner(x):
        return net.b(x)

    def outer(x):
        return inner(x)

    net.reach = outer


def _wrapped(net):
    forward = net.b.forward
    net.b.forward = lambda x: forward(x)
    net.reach = net.b


def _weight(net):
    weight = net.b.weight
    net.reach = lambda x: nn.functional.linear(x, weight)


def _slots(net):
    class Slots:
        __slots__ = ("layer",)

    net.slots = Slots()
    net.slots.layer = net.b
    net.reach = lambda x: net.slots.layer(x)


def _set(net, **attributes):
    for name, value in attributes.items():
        setattr(net, name, value)


WAYS = {
    "a lambda": lambda net: _set(net, reach=lambda x: net.b(x)),
    "a bound method": lambda net: _set(net, reach=net.middle),
    "a partial method": lambda net: _set(net, reach=functools.partial(Net.middle, net)),
    "a partial lambda": lambda net: _set(net, reach=functools.partial(lambda m, x: m.b(x), net)),
    "a default": lambda net: _set(net, reach=lambda x, layer=net.b: layer(x)),
    "a keyword default": lambda net: _set(net, reach=lambda x, *, layer=net.b: layer(x)),
    "functions in functions": _nested,
    "a list": lambda net: _set(net, order=[net.b], reach=lambda x: net.order[0](x)),
    "a dict of lambdas": lambda net: _set(
        net, table={"f": lambda x: net.b(x)}, reach=lambda x: net.table["f"](x)
    ),
    "an object": lambda net: _set(net, reach=Held(net.b)),
    "slots": _slots,
    "a proxy": _proxy,
    "a wrapped forward": _wrapped,
    "a weight": _weight,
    "a global variable": lambda net: HERE.update(net=net) or _set(net, reach=_by_global()),
}


def _function(code, **variables):
    """A function with global variables of its own, as in another file."""
    space: dict[str, Any] = {"__builtins__": __builtins__, "__name__": "elsewhere", **variables}
    exec(code, space)
    return space["f"]


def _by_global():
    return _function("def f(x): return net.b(x)", net=HERE["net"])


@pytest.mark.parametrize("way", WAYS)
def test_counts_and_copies_follow(way):
    net = Net(way)
    assert profile(net, (5, 8)).macs == 2 * 5 * 32
    copied = copy_with_tensors(net, lambda *place: place[-1].detach().clone())
    x = torch.rand(5, 8)
    expected = net(x)
    assert torch.equal(copied(x), expected)
    with torch.no_grad():
        net.b.weight.zero_()
    assert torch.equal(copied(x), expected)
    assert not net(x).any()


def test_a_module_that_cannot_be_copied_is_named():
    class Sealed(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("sealed")

    model = nn.Sequential(nn.Linear(2, 2), Sealed(2, 2))
    assert profile(model, (5, 2)).macs == 5 * 8
    with pytest.raises(
        IsoflopError, match=r"The module '1' \(Sealed\) of Sequential cannot be copied.*sealed"
    ):
        isoflop.freeze(model, example_inputs=(5, 2))


def test_functions_that_lead_nowhere_are_shared():
    net: Any = nn.Linear(2, 2)
    seen: list[Tensor] = []
    net.function = lambda x: seen.append(x)
    copied: Any = copy_with_tensors(net, lambda *place: place[-1].detach().clone())
    assert copied.function is net.function


def test_attributes_of_parameters_are_kept():
    net: Any = nn.Linear(2, 2)
    net.weight.no_decay = True
    copied: Any = copy_with_tensors(net, lambda *place: place[-1].detach().clone())
    assert copied.weight.no_decay


class Reached(nn.Module):
    """Reaches a layer by a function that is made of it."""

    def __init__(self, way) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 5)
        self.find = way(self.a)

    def forward(self, x):
        return self.b(self.find()(x).relu())


HELD = []


def _cached(layer):
    @functools.cache
    def find():
        return layer

    return find


def _by_a_method_of_a_list(layer):
    return functools.partial([layer].__getitem__, 0)


def _global(layer):
    HELD[:] = [layer]
    return lambda: HELD[0]


@pytest.mark.parametrize("way", [_cached, weakref.ref, _by_a_method_of_a_list, _global])
@pytest.mark.parametrize("change", ["wide", "parallel", "freeze"])
def test_layers_that_no_copy_reaches_are_refused(way, change):
    model = Reached(way)
    if change == "freeze":
        with pytest.raises(IsoflopError, match=r"'a.(weight|bias)' of the model itself"):
            isoflop.freeze(model, example_inputs=(4, 12))
        return
    config = TRANSFORMS.get(change)(0.5, dense_ends=False)
    with pytest.raises(IsoflopError, match=r"'a.(weight|bias)' not as a part of the model"):
        isoflop.transform(model, config, example_inputs=(4, 12))
