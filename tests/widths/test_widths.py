from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.zoo import WIDENED
from torch import nn

import isoflop
from isoflop.errors import WideningError
from isoflop.flops.trace import trace
from isoflop.widths import Widths, check_widened, solve_widths, widen


def widened(model, shape, factor, **options) -> Any:
    return widen(model, solve_widths(model, factor, shape, **options))


@pytest.mark.parametrize("name", WIDENED)
def test_every_hidden_width_doubles(name):
    make, shape = WIDENED[name]
    model = make()
    wide = widened(model, shape, 2.0)
    before, after = trace(model, shape), trace(wide, shape)
    check_widened(model, wide, Widths(2.0), before)
    assert before.output_shapes == after.output_shapes
    old = before.table.by_parameter()
    parameters = dict(model.named_parameters())
    for weight, macs in after.table.by_parameter().items():
        ends = (weight in before.first) + (weight in before.last)
        depthwise = parameters[weight].shape[1] == 1 and not ends
        assert macs == old[weight] * (2 if ends or depthwise else 4)


@pytest.mark.parametrize("factor", [2**0.5, 2.5**0.5, 10**0.5])
@pytest.mark.parametrize("name", WIDENED)
def test_any_factor_gives_a_model_that_works(name, factor):
    make, shape = WIDENED[name]
    model = make()
    wide = widened(model, shape, factor)
    check_widened(model, wide, Widths(factor), trace(model, shape))
    for parameter in wide.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert wide(torch.randn(shape)).shape == model(torch.randn(shape)).shape


def test_factor_one_changes_nothing_and_the_model_stays_as_it_was():
    make, shape = WIDENED["gated"]
    model: Any = make()
    before = {name: p.clone() for name, p in model.named_parameters()}
    same = widened(model, shape, 1.0)
    wide = widened(model, shape, 2.0)
    assert all(torch.equal(p, before[name]) for name, p in same.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert wide.grouped.groups == 4
    assert wide.norm.num_groups == 4
    assert wide.squeeze.out_channels == 12
    assert model.squeeze.out_channels == 6


def test_attributes_follow_their_tensors():
    make, shape = WIDENED["mobilenet_v2"]
    wide = widened(make(), shape, 3.0)
    for module in wide.modules():
        if isinstance(module, nn.Conv2d):
            channels = (module.out_channels, module.in_channels // module.groups)
            assert tuple(module.weight.shape[:2]) == channels
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == module.state_dict()["running_mean"].numel()


def test_widths_round_to_multiples():
    make, shape = WIDENED["cifar_resnet"]
    wide = widened(make(), shape, 2**0.5, multiple_of=8)
    assert {m.out_channels % 8 for m in wide.modules() if isinstance(m, nn.Conv2d)} == {0}


def test_a_model_on_the_meta_device():
    make, shape = WIDENED["resnet18"]
    with torch.device("meta"):
        model = make()
    assert widened(model, shape, 2.0).fc.weight.shape == (10, 1024)


def test_a_width_tied_to_a_constant_is_named():
    class Pinned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 8)
            self.b = nn.Linear(8, 8)
            self.c = nn.Linear(8, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x)) + torch.arange(8.0))

    model = Pinned()
    widths = solve_widths(model, 2.0, (1, 4))
    message = r"output width of 'b.weight'.*did not grow.* 8 \(8\) in Pinned \(add\) ties it"
    with pytest.raises(WideningError, match=message):
        check_widened(model, widen(model, widths), widths, trace(model, (1, 4)))


class Graph(nn.Module):
    """A random graph of convolutions joined by addition and concatenation."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1)])
        widths = [6]
        for kind, first, second, width in steps:
            a, b = first % len(widths), second % len(widths)
            inputs = widths[a]
            if kind == "add":
                layer = nn.Conv2d(inputs, widths[b], 1)
                width = widths[b]
            elif kind == "cat":
                layer = nn.Conv2d(inputs, width, 1)
                width += widths[b]
            elif kind == "depthwise":
                layer = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
                width = inputs
            else:
                layer = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width))
            self.layers.append(layer)
            widths.append(width)
        self.head = nn.Linear(widths[-1], 4)

    def forward(self, x):
        values = [self.layers[0](x)]
        for (kind, first, second, _), layer in zip(self.steps, self.layers[1:], strict=True):
            a, b = values[first % len(values)], values[second % len(values)]
            value = layer(a)
            if kind == "add":
                value = value + b
            elif kind == "cat":
                value = torch.cat([value, b], 1)
            values.append(torch.relu(value))
        return self.head(values[-1].mean((2, 3)))


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["conv", "add", "cat", "depthwise"]),
            st.integers(0, 5),
            st.integers(0, 5),
            st.integers(2, 9),
        ),
        min_size=1,
        max_size=5,
    ),
    factor=st.sampled_from([2**0.5, 1.7, 3.0]),
)
def test_random_graphs_widen_and_run(steps, factor):
    model = Graph(steps)
    shape = (1, 3, 4, 4)
    wide = widened(model, shape, factor)
    check_widened(model, wide, Widths(factor), trace(model, shape))
    for parameter in wide.parameters():
        nn.init.zeros_(parameter)
    assert wide.eval()(torch.zeros(shape)).shape == (1, 4)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_widen(kind):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(5, 12)
            self.recurrent = kind(12, 16, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(32, 3)

        def forward(self, x):
            return self.head(self.recurrent(self.embed(x))[0])

    wide = widened(Tagger(), (2, 4, 5), 2.0)
    assert (wide.recurrent.input_size, wide.recurrent.hidden_size) == (24, 32)
    for parameter in wide.parameters():
        nn.init.normal_(parameter, std=0.1)
    assert wide(torch.randn(2, 4, 5)).shape == (2, 4, 3)


def test_padding_shifting_and_resizing_tie_no_width_to_a_constant():
    class Shifty(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = torch.roll(nn.functional.pad(self.a(x), (1, 1, 1, 1)), (1, 1), (2, 3))
            return self.head(nn.functional.interpolate(self.b(x), scale_factor=2.0))

    wide = widened(Shifty(), (1, 3, 8, 8), 2.0)
    assert wide.b.weight.shape == (16, 16, 3, 3)


@pytest.mark.parametrize(
    ("sparsity", "width", "attention", "inner"),
    # Table 14 of the paper has 1092 and 4344 at 50 %: it rounds the width itself to the heads.
    [(0.5, 1086, 1092, 4344), (0.75, 1536, 1536, 6144)],
)
def test_widths_of_gpt3_small(sparsity, width, attention, inner):
    from isoflop.model_specs import build_model, example_inputs

    model = build_model("isoflop:gpt3_small", meta=True)
    inputs = example_inputs("isoflop:gpt3_small", (1, 16), meta=True)
    wide = widened(model, inputs, (1 / (1 - sparsity)) ** 0.5)
    assert wide.transformer.h[0].mlp.c_fc.weight.shape == (width, inner)
    assert wide.transformer.h[11].attn.c_attn.weight.shape == (width, 3 * attention)
    assert wide.transformer.h[11].attn.num_heads == 12


class Auxiliary(nn.Module):
    """A second head that runs in training only, and a third that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.second = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 10))
        self.third = nn.Linear(16, 10)

    def forward(self, x):
        x = self.body(self.first(x))
        return (self.head(x), self.second(x)) if self.training else self.head(x)


def test_parts_that_run_in_training_only_are_widened_and_idle_ones_left():
    model = Auxiliary().eval()
    wide = widened(model, (2, 4), 2.0)
    shapes = {name: tuple(p.shape) for name, p in wide.named_parameters()}
    assert shapes["second.0.weight"] == (48, 32)
    assert shapes["second.2.weight"] == (10, 48)
    assert shapes["third.weight"] == (10, 16)
    assert [tuple(t.shape) for t in wide.train()(torch.zeros(2, 4))] == [(2, 10), (2, 10)]


class ThreeDimensionalHeads(nn.Module):
    """Projections of shape (width, heads, head), as those of XLNet."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(6, 32), nn.Linear(32, 5)
        self.q, self.k, self.out = (nn.Parameter(0.1 * torch.randn(32, 4, 8)) for _ in range(3))

    def forward(self, x):
        x = self.a(x)
        q, k = (torch.einsum("bid,dnh->bnih", x, w) for w in (self.q, self.k))
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ k
        return self.o(torch.einsum("bnih,dnh->bid", mixed, self.out))


def test_heads_between_two_widths_are_a_count():
    wide: Any = isoflop.transform(
        ThreeDimensionalHeads(),
        isoflop.SparseWide(0.75, dense_ends=False),
        example_inputs=(2, 7, 6),
    )[0]
    assert wide.q.shape == (64, 4, 16)
