"""Whatever a model does, its frozen form computes the same, on values that `freeze` has not seen."""

import copy
import functools
import types
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.kernels.fuse.test_freeze import count, disturb
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves, tree_map

from isoflop.errors import InputError, KernelError, NoEffectWarning
from isoflop.kernels import SparseLayer, freeze, frozen_dense
from isoflop.masks import named_masks, set_mask


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std(), self.bias, padding=1)


class OtherProduct(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, 2 * weight + 1, bias)


class FixedNorm(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * input + 1


class Scaling(nn.Dropout):
    def forward(self, input):
        return 3 * input


class Partial(nn.Sequential):
    def forward(self, input):
        return self[0](input) + 1


class Net(nn.Module):
    """A forward pass given as a function of the module and the input."""

    run: Any
    c: Any
    b: Any
    d: Any
    s: Any

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def conv(kind=nn.Conv2d, **options: Any):
    return kind(4, 4, 3, **{"padding": 1, **options})


def norm(**options):
    return nn.BatchNorm2d(4, **options)


def follow(*names):
    """Return a forward pass that calls modules by name, one after the other."""

    def run(net, x):
        for name in names:
            x = getattr(net, name)(x)
        return x

    return run


def layer_and_norm(layer=None, bn=None):
    return Net(follow("c", "b"), c=layer or conv(), b=bn or norm())


def sequence(run, *members, kind=nn.Sequential):
    return Net(run, s=kind(*(members or (conv(), norm()))))


def one_by_one(net, x):
    for module in net.s:
        x = module(x)
    return x


def keeping(net, x):
    net.last = net.c(x)
    return net.b(net.last)


def counting(net, x):
    net.calls = getattr(net, "calls", 0) + 1
    return net.b(net.c(x)) * min(net.calls, 2)


def held_in_a_list():
    net = layer_and_norm()
    net.__dict__["order"] = [net.c, net.b]
    net.run = lambda self, x: self.order[1](self.order[0](x))
    return net


def tied():
    net = Net(follow("c", "b", "d"), c=conv(), b=norm(), d=conv())
    net.d.weight = net.c.weight
    return net


def double(module, args, output: Any):
    return 2 * output


def hooked(where, hook="forward"):
    net = layer_and_norm()
    module = net.get_submodule(where)
    if hook == "forward":
        module.register_forward_hook(double)
    else:
        module.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return net


def replaced_forward():
    net = layer_and_norm()
    net.c.forward = types.MethodType(lambda self, x: 3 * nn.Conv2d.forward(self, x), net.c)
    return net


def swallowing(net, x):
    """Where a trace cannot tell the sign, it goes the first way."""
    try:
        positive = bool(x.mean() > 0)
    except TraceError:
        positive = True
    return net.b(net.c(x)) if positive else net.c(x)


def by_sign(net, x):
    return net.b(net.c(x)) if x.mean() > 0 else net.c(net.b(x))


def halved(net, x):
    x = net.c(x)
    while x.abs().max() > 1:
        x = x / 2
    return net.b(x)


Named = namedtuple("Named", "first second")


@dataclass
class Data:
    first: Tensor
    number: int


MODELS = {
    "standardised weight": lambda: layer_and_norm(conv(Standardised)),
    "standardised weight in a sequence": lambda: sequence(follow("s"), conv(Standardised), norm()),
    "other product": lambda: layer_and_norm(conv(OtherProduct)),
    "used before the norm": lambda: Net(lambda n, x: n.b(y := n.c(x)) + y, c=conv(), b=norm()),
    "runs again without it": lambda: Net(lambda n, x: n.b(n.c(x)) + n.c(x), c=conv(), b=norm()),
    "weight read elsewhere": lambda: Net(
        lambda n, x: n.b(n.c(x)) + F.conv2d(x, n.c.weight, padding=1), c=conv(), b=norm()
    ),
    "norm twice": lambda: Net(follow("c", "b", "b"), c=conv(), b=norm()),
    "two norms": lambda: Net(follow("c", "b", "d"), c=conv(), b=norm(), d=norm()),
    "shared norm": lambda: Net(
        lambda n, x: n.b(n.c(x)) + n.b(n.d(x)), c=conv(), b=norm(), d=conv()
    ),
    "shared layer": lambda: Net(
        lambda n, x: n.b(n.c(x)) + n.d(n.c(x)), c=conv(), b=norm(), d=norm()
    ),
    "norm before the layer": lambda: Net(follow("b", "c"), c=conv(), b=norm()),
    "dropout between": lambda: Net(follow("c", "d", "b"), c=conv(), b=norm(), d=nn.Dropout()),
    "own dropout between": lambda: Net(follow("c", "d", "b"), c=conv(), b=norm(), d=Scaling()),
    "sequence": lambda: sequence(follow("s")),
    "sequence and a member": lambda: sequence(lambda n, x: n.s(x) + n.s[0](x)),
    "sequence in reverse": lambda: sequence(lambda n, x: n.s[0](n.s[1](x))),
    "sequence both ways": lambda: sequence(lambda n, x: n.s(x) + n.s[0](n.s[1](x))),
    "part of a sequence": lambda: sequence(lambda n, x: n.s[:1](x)),
    "members of a sequence": lambda: sequence(one_by_one),
    "children of a sequence": lambda: sequence(lambda n, x: next(n.s.children())(x)),
    "sequence twice": lambda: sequence(follow("s", "s")),
    "sequence of an own class": lambda: sequence(follow("s"), kind=Partial),
    "sequence of names": lambda: Net(
        lambda n, x: n.s(x) + n.s.first(x),
        s=nn.Sequential(OrderedDict(first=conv(), second=norm())),
    ),
    "nested sequences": lambda: sequence(
        follow("s"), nn.Sequential(conv(), norm()), nn.Sequential(nn.Sequential(conv(), norm()))
    ),
    "new spectral norm": lambda: layer_and_norm(parametrizations.spectral_norm(conv())),
    "new weight norm": lambda: layer_and_norm(parametrizations.weight_norm(conv())),
    "orthogonal": lambda: layer_and_norm(parametrizations.orthogonal(conv())),
    "spectral norm": lambda: layer_and_norm(nn.utils.spectral_norm(conv())),
    "parametrised sequence": lambda: sequence(
        follow("s"), parametrizations.weight_norm(conv()), norm()
    ),
    "no momentum": lambda: layer_and_norm(bn=norm(momentum=None)),
    "no statistics": lambda: layer_and_norm(bn=norm(track_running_stats=False)),
    "no weights": lambda: layer_and_norm(bn=norm(affine=False)),
    "linear without weights": lambda: Net(
        lambda n, x: n.b(n.c(x.mean((2, 3)))),
        c=nn.Linear(4, 4),
        b=nn.BatchNorm1d(4, affine=False),
    ),
    "own norm": lambda: layer_and_norm(bn=FixedNorm(4)),
    "synchronised norm": lambda: layer_and_norm(bn=nn.SyncBatchNorm(4)),
    "transposed": lambda: layer_and_norm(nn.ConvTranspose2d(4, 4, 3)),
    "grouped": lambda: layer_and_norm(conv(groups=2, bias=False)),
    "circular": lambda: layer_and_norm(conv(padding_mode="circular")),
    "double": lambda: layer_and_norm().double(),
    "bfloat16": lambda: layer_and_norm().bfloat16(),
    "hooked layer": lambda: hooked("c"),
    "hooked norm": lambda: hooked("b", "before"),
    "hooked model": lambda: hooked(""),
    "hook before the model": lambda: hooked("", "before"),
    "replaced forward": replaced_forward,
    "tied": tied,
    "held in a list": held_in_a_list,
    "keeps its activations": lambda: Net(keeping, c=conv(), b=norm()),
    "counts its calls": lambda: Net(counting, c=conv(), b=norm()),
    "branches where a trace cannot": lambda: Net(swallowing, c=conv(), b=norm()),
    "branches": lambda: Net(by_sign, c=conv(), b=norm()),
    "loops": lambda: Net(halved, c=conv(), b=norm()),
    "keywords": lambda: Net(
        lambda n, x: n.a(input=n.b(input=n.c(input=x))), c=conv(), b=norm(), a=nn.ReLU()
    ),
    "dropout by keyword": lambda: Net(lambda n, x: n.d(input=n.c(x)), c=conv(), d=nn.Dropout()),
    "functions by keyword": lambda: Net(
        lambda n, x: F.max_pool2d(input=F.relu(input=n.b(n.c(x))), kernel_size=2),
        c=conv(),
        b=norm(),
    ),
    "pooling by position": lambda: Net(
        lambda n, x: F.max_pool2d(n.b(n.c(x)), 3, 2, 0, 1, True), c=conv(), b=norm()
    ),
    "pooling with indices": lambda: Net(
        lambda n, x: F.max_pool2d(n.b(n.c(x)), 2, return_indices=True), c=conv(), b=norm()
    ),
    "average by position": lambda: Net(
        lambda n, x: F.avg_pool2d(F.dropout(n.c(x), 0.5, n.training), 3, 2, 1, True, False),
        c=conv(),
    ),
    "addition by keyword": lambda: Net(lambda n, x: torch.add(input=n.c(x), other=x), c=conv()),
    "scaled addition": lambda: Net(lambda n, x: torch.add(n.c(x), x, alpha=2), c=conv()),
    "method by keyword": lambda: Net(lambda n, x: n.c(x).add(other=x), c=conv()),
    "in place": lambda: Net(lambda n, x: F.relu_(n.b(n.c(x).add_(1))), c=conv(), b=norm()),
    "random": lambda: Net(lambda n, x: n.b(n.c(x)) + torch.randn_like(x), c=conv(), b=norm()),
    "random constant": lambda: Net(lambda n, x: n.c(x) + torch.randn(4, 1, 1), c=conv()),
    "dropout in evaluation": lambda: Net(lambda n, x: F.dropout(n.c(x)), c=conv()),
    "not a number": lambda: Net(
        lambda n, x: n.b(n.c(x)) * torch.tensor([1, torch.nan] * 4), c=conv(), b=norm()
    ),
    "a plain number": lambda: Net(lambda n, x: float(n.b(n.c(x)).sum()), c=conv(), b=norm()),
    "a dict": lambda: Net(lambda n, x: {"y": n.b(n.c(x)), "n": 3}, c=conv(), b=norm()),
    "a tuple": lambda: Net(lambda n, x: (n.b(n.c(x)), None, [x]), c=conv(), b=norm()),
    "a named tuple": lambda: Net(lambda n, x: Named(n.b(n.c(x)), x), c=conv(), b=norm()),
    "a dataclass": lambda: Net(lambda n, x: Data(n.b(n.c(x)), 3), c=conv(), b=norm()),
}


def masked(model):
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and "weight" in module._parameters:
            weight = module.weight
            set_mask(module, "weight", torch.rand(weight.shape) < 0.4)
    return model


def untraceable(model):
    """Make the forward pass look at a value first."""
    run = model.run

    def looking(net, x):
        return x if x.sum() > 1e9 else run(net, x)

    model.run = looking
    return model


def leaves(output):
    return tree_leaves(vars(output) if isinstance(output, Data) else output)


def assert_same(frozen, model, x):
    with torch.no_grad():
        torch.manual_seed(5)
        expected = model(x)
        torch.manual_seed(5)
        ours = frozen(x)
    assert type(ours) is type(expected)
    for a, b in zip(leaves(ours), leaves(expected), strict=True):
        if isinstance(b, Tensor) and b.is_floating_point():
            scale = float(b.nan_to_num().abs().max())
            error = 200 * scale * torch.finfo(b.dtype).eps
            torch.testing.assert_close(a, b, rtol=0, atol=error, equal_nan=True)
        elif isinstance(b, float):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-3)
        else:
            assert a is b is None or bool(torch.as_tensor(a == b).all())


@pytest.mark.parametrize("trace", [True, False], ids=["traced", "not traced"])
@pytest.mark.parametrize("sparse", [True, False], ids=["masked", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_frozen_models_compute_the_same(name, sparse, trace):
    torch.manual_seed(0)
    model = disturb(MODELS[name]()).eval()
    model = masked(model) if sparse else model
    model = model if trace else untraceable(model)
    state = copy.deepcopy(model.state_dict())
    dtype = next(model.parameters()).dtype
    example = torch.randn(2, 4, 8, 8, dtype=dtype)
    frozen = (freeze if sparse else frozen_dense)(model, example_inputs=example)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not list(named_masks(frozen))
    for seed, shift in enumerate((-1, 0, 3)):
        torch.manual_seed(10 + seed)
        x = torch.randn(2 + seed, 4, 8, 8, dtype=dtype) + shift
        # What counts its calls is compared in the same state.
        assert_same(copy.deepcopy(frozen), copy.deepcopy(model), x)


FOLDED = (
    *("two norms", "no weights", "no momentum", "dropout between", "keywords"),
    "linear without weights",
)


@pytest.mark.parametrize("name", FOLDED)
def test_what_can_be_folded_is(name):
    frozen = freeze(masked(disturb(MODELS[name]()).eval()), example_inputs=(2, 4, 8, 8))
    assert count(frozen, nn.modules.batchnorm._BatchNorm) == 0
    assert count(frozen, SparseLayer) == 1
    if name == "keywords":
        assert count(frozen, nn.ReLU) == 0


@pytest.mark.parametrize("name", ["branches", "loops", "counts its calls", "keeps its activations"])
def test_masked_layers_are_sparse_without_a_trace(name):
    frozen = freeze(masked(disturb(MODELS[name]()).eval()), example_inputs=(2, 4, 8, 8))
    assert type(frozen) is Net
    assert count(frozen, SparseLayer) == 1


def test_a_folded_sequence_refuses_to_be_taken_apart():
    def run(net, x):
        return net.s[0](x) if x.max() > 1e3 else net.s(x)

    model = disturb(sequence(run)).eval()
    frozen = freeze(model, example_inputs=(2, 4, 8, 8))
    assert count(frozen, nn.BatchNorm2d) == 0
    x = torch.randn(3, 4, 8, 8)
    assert_same(frozen, model, x)
    with pytest.raises(KernelError, match="example inputs for which it does so"):
        frozen(1e6 * x)


def test_copies_use_what_is_theirs_behind_functions_too():
    model = layer_and_norm()
    model.run = lambda net, x: model.c(x)
    frozen = freeze(model, example_inputs=(2, 4, 8, 8))
    x = torch.randn(2, 4, 8, 8)
    expected = frozen(x).clone()
    with torch.no_grad():
        model.c.weight.zero_()
    assert torch.equal(frozen(x), expected)


@pytest.mark.parametrize("kind", ["hidden", "never the same"])
def test_models_that_cannot_be_compared_stay_dense(kind):
    numbers = iter(range(1000))
    run = {
        "hidden": lambda net, x: functools.partial(print, net.b(net.c(x))),
        "never the same": lambda net, x: net.b(net.c(x)) * next(numbers),
    }[kind]
    model = masked(disturb(Net(run, c=conv(), b=norm())).eval())
    with pytest.warns(NoEffectWarning, match="no change could be checked"):
        frozen = freeze(model, example_inputs=(2, 4, 8, 8))
    assert count(frozen, nn.BatchNorm2d) == 1
    assert count(frozen, SparseLayer) == 0


def test_batchnorm_of_sequences_and_unbatched_inputs():
    for model, shape in (
        (nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (2, 4, 9)),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)), (4, 4)),
        (nn.Sequential(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)), (2, 4, 5, 5, 5)),
    ):
        frozen = freeze(disturb(model).eval(), example_inputs=shape)
        assert count(frozen, nn.modules.batchnorm._BatchNorm) == (len(shape) == 2)
        assert_same(frozen, model, torch.randn(shape))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (lambda net, d: net.b(net.c(d["x"])) + d["y"], ({"x": 1, "y": 1},)),
        (lambda net, xs: net.b(net.c(torch.stack(xs).sum(0))), ([1, 1],)),
        (lambda net, x: net.b(net.c(x)), (0,)),
        (lambda net, x: net.b(net.c(x)), {"x": 1}),
    ],
    ids=["dict", "list", "no samples", "keyword"],
)
def test_inputs_of_any_kind(model, inputs):
    def real(value):
        return torch.randn(2 * value, 4, 8, 8) if isinstance(value, int) else value

    made = tree_map(real, inputs)
    net = masked(disturb(Net(model, c=conv(), b=norm())).eval())
    frozen = freeze(net, example_inputs=made)
    assert count(frozen, SparseLayer) == 1
    x = next(iter(made.values())) if isinstance(made, dict) else made[0]
    torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "Run it once"),
        (lambda: nn.Sequential(conv()).to("meta"), "no values"),
        (lambda: nn.Sequential(nn.Conv2d(5, 4, 3)), "to have 5 channels"),
        (lambda: nn.Sequential(scripted()), "before torch.jit"),
    ],
    ids=["lazy", "meta", "other channels", "scripted"],
)
def test_models_that_cannot_run(model, message):
    with pytest.raises(InputError, match=message):
        freeze(model(), example_inputs=(2, 4, 8, 8))


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.jit.script(conv())


@pytest.mark.parametrize("keep", [dict, list])
def test_hooks_leave_activations_where_the_copy_looks_for_them(keep):
    kept = keep()

    def run(net, x):
        return net.d(net.c(x)) + (net.kept["c"] if keep is dict else net.kept.pop())

    model = Net(run, c=conv(), d=conv())
    model.kept = kept
    note = (lambda y: kept.update(c=y)) if keep is dict else (lambda y: kept.append(y))
    model.c.register_forward_hook(lambda module, args, output: note(output))
    model = masked(model.eval())
    frozen = freeze(model, example_inputs=(2, 4, 8, 8))
    x = torch.randn(3, 4, 8, 8)
    assert_same(frozen, model, x)
    assert frozen.kept is not kept
