"""Masked weights are counted as they arrive at a product, whatever was done to them before."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import isoflop
from isoflop.errors import UncountedOperationWarning
from isoflop.flops.trace import network_ends, profile
from isoflop.masks import set_mask

aten = torch.ops.aten


def masked(layer, density=0.25, seed=0):
    """Mask the weight of a layer at random; the numbers that stay are positive."""
    weight = layer.get_parameter("weight")
    generator = torch.Generator().manual_seed(seed + weight.numel())
    mask = torch.rand(weight.shape, generator=generator) < density
    with torch.no_grad():
        weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    set_mask(layer, "weight", mask)
    return layer


class Model(nn.Module):
    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def linears(*names, inputs=8, outputs=8):
    return {
        name: masked(nn.Linear(inputs, outputs, bias=False), seed=i) for i, name in enumerate(names)
    }


class NonZeros(TorchDispatchMode):
    """Counts products as they really run, by the values of their second factor."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in (aten.mm, aten.bmm):
            x, weight = args
            self.macs += int(torch.ones_like(x).double().matmul((weight != 0).double()).sum())
        elif packet is aten.addmm:
            x, weight = args[1:3]
            self.macs += int(torch.ones_like(x).double().matmul((weight != 0).double()).sum())
        elif packet is aten.convolution:
            weight = args[1]
            positions = out[:, 0].numel()
            self.macs += positions * int(weight.count_nonzero())
        return out


def truly(model, x):
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # which has layers of its own
    try:
        with torch.no_grad(), NonZeros() as mode:
            model.eval()(x)
    finally:
        torch._C._set_mkldnn_enabled(enabled)
    return mode.macs


def _into(buffer, *weights):
    start = 0
    for weight in weights:
        buffer[start : start + len(weight)] = weight
        start += len(weight)
    return buffer


JOINED = {
    "cat": lambda m, x: F.linear(x, torch.cat([m.q.weight, m.k.weight])),
    "cat of inputs": lambda m, x: F.linear(x.repeat(1, 2), torch.cat([m.q.weight, m.k.weight], 1)),
    "cat and chunk": lambda m, x: sum(
        F.linear(x, w) for w in torch.cat([m.q.weight, m.k.weight]).chunk(2)
    ),
    "stack": lambda m, x: torch.bmm(
        x.expand(2, 5, 8), torch.stack([m.q.weight, m.k.weight]).transpose(1, 2)
    ),
    "block diagonal": lambda m, x: F.linear(
        x.repeat(1, 2), torch.block_diag(m.q.weight, m.k.weight)
    ),
    "slice": lambda m, x: F.linear(x[:, :4], m.q.weight[:, :4]),
    "rows and columns": lambda m, x: F.linear(x[:, ::2], m.q.weight[1:7, ::2]),
    "one row": lambda m, x: torch.mm(x, m.q.weight[3:4].t()),
    "narrow": lambda m, x: F.linear(x, m.q.weight.narrow(0, 2, 5)),
    "written to a buffer": lambda m, x: F.linear(
        x, _into(torch.zeros(20, 8), m.q.weight, m.k.weight)
    ),
    "padded": lambda m, x: F.linear(x.repeat(1, 2)[:, :10], F.pad(m.q.weight, (1, 1))),
    "turned round": lambda m, x: F.linear(x, m.q.weight.flip(0).roll(1, 1).t().contiguous()),
    "rows chosen": lambda m, x: F.linear(x, m.q.weight[torch.tensor([0, 0, 3])]),
    "index_select": lambda m, x: F.linear(x, m.q.weight.index_select(1, torch.arange(7, -1, -1))),
    "triangle": lambda m, x: F.linear(x, m.q.weight.tril()),
    "repeated": lambda m, x: F.linear(x, m.q.weight.repeat(3, 1)),
    "expanded": lambda m, x: torch.bmm(x.expand(3, 5, 8), m.q.weight.t().expand(3, 8, 8)),
    "einsum": lambda m, x: torch.einsum("bi,oi->bo", x, m.q.weight),
    "scaled": lambda m, x: F.linear(x, m.q.weight * 3 / m.q.weight.abs().amax()),
    "scaled by columns": lambda m, x: F.linear(x, m.q.weight * torch.arange(1.0, 9.0)),
    "product of two": lambda m, x: F.linear(x, m.q.weight * m.k.weight),
    "sum of two": lambda m, x: F.linear(x, (m.q.weight + m.k.weight) / 2),
    "squared": lambda m, x: F.linear(x, m.q.weight**2),
    "clipped": lambda m, x: F.linear(x, m.q.weight.clamp(-2, 2)),
    "rounded": lambda m, x: F.linear(
        x, torch.fake_quantize_per_tensor_affine(m.q.weight, 0.1, 0, -128, 127)
    ),
    "of another type": lambda m, x: F.linear(x.double(), m.q.weight.double()),
    "data": lambda m, x: F.linear(x, m.q.weight.data),
    "copied": lambda m, x: F.linear(x, m.q.weight.clone().detach()),
    "a cached tuple": lambda m, x: F.linear(x, (m.q.weight, m.k.weight)[1]),
    "convolution": lambda m, x: F.conv1d(x[..., None], m.q.weight[..., None]),
    "unbound": lambda m, x: torch.stack([x @ w for w in m.q.weight.view(2, 4, 8).mT.unbind()]),
    "in place": lambda m, x: F.linear(x, m.q.weight.clone().mul_(2).neg_()),
    "two weights multiplied": lambda m, x: F.linear(x, m.q.weight @ m.k.weight),
    "one, then another": lambda m, x: F.linear(F.linear(x, m.q.weight), m.k.weight),
}


@pytest.mark.parametrize("name", JOINED)
def test_the_nonzeros_that_arrive_are_what_counts(name):
    model = Model(JOINED[name], **linears("q", "k"))
    x = torch.rand(5, 8) + 0.5
    if name == "two weights multiplied":
        # The product of two sparse weights counts as dense: sums may be anything but zero.
        one, two = (model.get_parameter(f"{name}.weight") != 0 for name in ("q", "k"))
        inner = int(one.double().matmul(two.double()).sum())
        assert profile(model, x).macs == inner + 5 * 64
        return
    assert profile(model, x).macs == truly(model, x)


class Modulated(nn.Module):
    """StyleGAN2's convolution: its weight is scaled by each sample's style, and then to unit norm."""

    def __init__(self, demodulate):
        super().__init__()
        self.stem, self.head = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 3, 1)
        self.style = nn.Linear(8, 8)
        self.conv = masked(nn.Conv2d(8, 8, 3, bias=False))
        self.demodulate = demodulate

    def forward(self, x):
        x = self.stem(x)
        weight = self.conv.weight[None] * self.style(x.mean((2, 3)))[:, None, :, None, None]
        if self.demodulate:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        batch = len(x)
        x = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), groups=batch)
        return self.head(x.view(batch, 8, *x.shape[2:]))


@pytest.mark.parametrize("demodulate", [False, True])
def test_weights_scaled_by_activations_count_by_their_masks(demodulate):
    model = Modulated(demodulate)
    table = profile(model, (2, 4, 6, 6))
    nnz = int(model.get_buffer("conv.weight_mask").sum())
    assert {row.parameters: row.macs for row in table.rows}[("conv.weight",)] == 2 * 16 * nnz
    assert table.by_parameter()["conv.weight"] == 2 * 16 * 8 * 72


KEEPS = {
    "where": lambda m, x: F.linear(x, torch.where(m.q.weight.abs() > 0.1, m.q.weight, 0.0)),
    "masked_fill": lambda m, x: F.linear(x, m.q.weight.masked_fill(m.q.weight < 0.1, 0)),
    "threshold": lambda m, x: F.linear(x, m.q.weight * (m.q.weight.abs() > 0.1).float()),
    "unit rows": lambda m, x: F.linear(x, F.normalize(m.q.weight)),
    "arc sine": lambda m, x: F.linear(x, (m.q.weight / 2).asin()),
    "scattered": lambda m, x: F.linear(x, torch.zeros(8, 8).index_copy(0, m.order, m.q.weight)),
    "eight bits": lambda m, x: aten._int_mm(
        (x.repeat(4, 1) * 10).to(torch.int8), (m.q.weight * 10).round().to(torch.int8).t()
    )[:5],
}


@pytest.mark.parametrize("name", KEEPS)
def test_zeros_stay_zeros_through_whatever_is_done_to_a_weight(name):
    model = Model(KEEPS[name], **linears("q"))
    model.register_buffer("order", torch.randperm(8))
    rows = 20 if name == "eight bits" else 5
    assert profile(model, (5, 8)).macs == rows * int(model.get_buffer("q.weight_mask").sum())


DENSE = {
    "exponential": lambda m, x: F.linear(x, m.q.weight.exp()),
    "shifted": lambda m, x: F.linear(x, m.q.weight.abs() + 1e-3),
    "with a low rank added": lambda m, x: (
        F.linear(x, m.q.weight + m.b @ m.a) - x @ m.a.t() @ m.b.t()
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_zeros_that_become_other_numbers_count(name):
    model = Model(DENSE[name], **linears("q"))
    model.a, model.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.zeros(8, 2))
    low_rank = 2 * 64 + 2 * 5 * 16 if name == "with a low rank added" else 0
    assert profile(model, (5, 8)).macs == 5 * 64 + low_rank


def test_joined_weights_are_told_apart():
    model = Model(JOINED["cat"], **linears("q", "k"))
    rows = {row.parameters: row.macs for row in profile(model, (5, 8)).rows}
    assert rows == {
        (f"{name}.weight",): 5 * int(model.get_buffer(f"{name}.weight_mask").sum())
        for name in ("q", "k")
    }


def test_a_mask_beside_the_second_of_two_tied_weights_counts():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    masked(second)
    nnz = int(second.get_buffer("weight_mask").sum())
    assert profile(nn.Sequential(first, second), (5, 8)).macs == 2 * 5 * nnz


def _distances():
    places = torch.arange(8)
    return (places[:, None] - places).clamp(-7, 7) + 7


def test_tables_are_looked_up_by_the_values_of_buffers():
    table = masked(nn.Linear(4, 15, bias=False))
    model = Model(
        lambda m, x: torch.einsum("bid,ijd->bij", x, m.table.weight[m.index]), table=table
    )
    places = torch.arange(8)
    model.register_buffer("index", places[:, None] - places + 7)
    mask = table.get_buffer("weight_mask")
    assert profile(model, (5, 8, 4)).macs == 5 * int(mask[model.get_buffer("index")].sum())
    model.function = lambda m, x: torch.einsum("bid,ijd->bij", x, m.table.weight[_distances()])
    assert profile(model, (5, 8, 4)).macs == 5 * int(mask[model.get_buffer("index")].sum())
    model.function = lambda m, x: F.linear(x, m.table.weight[m.table.weight.sum(1).argsort()])
    with pytest.warns(UncountedOperationWarning, match="index of masked weights"):
        profile(model, (5, 8, 4))


class Learned(nn.Module):
    """A layer on the model's input beside one on a learned input."""

    def __init__(self, use):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.q, self.k = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.tokens = nn.Parameter(torch.rand(1, 16))
        self.use = use

    def forward(self, x):
        return self.head(F.relu(self.use(self, F.relu(self.stem(x)))))


LEARNED = {
    "as it is": lambda m, x: m.k(x) + m.q(m.tokens),
    "expanded": lambda m, x: m.k(x) + m.q(m.tokens.expand(len(x), -1)),
    "activated": lambda m, x: m.k(x) + m.q(F.gelu(m.tokens)),
    "constant": lambda m, x: m.k(x) + m.q(torch.ones(1, x.shape[1])),
    "attended to": lambda m, x: (m.k(x) @ m.q(m.tokens).t()) * m.q(m.tokens),
    "function": lambda m, x: F.linear(x, m.k.weight) + F.linear(m.tokens, m.q.weight),
    "normed": lambda m, x: m.k(x) + m.q(F.layer_norm(m.tokens, m.tokens.shape[1:])),
}


@pytest.mark.parametrize("transform", [isoflop.SparseWide(0.5), isoflop.SparseParallel(0.5)])
@pytest.mark.parametrize("name", LEARNED)
def test_layers_on_learned_inputs_are_part_of_plans(name, transform):
    if name == "function" and isinstance(transform, isoflop.SparseParallel):
        pytest.skip("weights that other code multiplies by stay")
    dense = Learned(LEARNED[name])
    model, plan = isoflop.transform(dense, transform, example_inputs=(5, 8))
    assert {layer.source for layer in plan.sparse_layers} == {"q", "k"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    isoflop.sparsify(model, optimizer, isoflop.RigL(), plan, total_steps=10)
    assert profile(model, (5, 8)).macs == plan.macs
    assert plan.macs == pytest.approx(plan.dense_macs, rel=0.01)


GATED = {
    "gate": lambda m, x: F.linear(x, m.q.weight * m.gate.sigmoid()),
    "gain": lambda m, x: F.linear(x, m.q.weight * m.gain),
    "joined": lambda m, x: (
        F.linear(x, torch.cat([m.q.weight, m.k.weight])).unflatten(1, (2, -1)).sum(1)
    ),
    "in halves": lambda m, x: torch.cat([F.linear(x, w) for w in m.q.weight.chunk(2)], 1),
}


@pytest.mark.parametrize("name", GATED)
def test_plans_hold_for_weights_that_are_joined_or_scaled(name):
    dense = Learned(GATED[name])
    dense.gate, dense.gain = nn.Parameter(torch.rand(16, 16)), nn.Parameter(torch.rand(16, 1))
    model, plan = isoflop.transform(dense, isoflop.SparseWide(0.5), example_inputs=(5, 8))
    assert "q.weight" in {layer.parameter for layer in plan.sparse_layers}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    isoflop.sparsify(model, optimizer, isoflop.RigL(), plan, total_steps=10)
    assert profile(model, (5, 8)).macs == plan.macs


def test_weights_of_which_some_multiply_more_often_have_no_price():
    def use(m, x):
        return m.k(F.linear(x, m.q.weight) + F.linear(x[:, :8], m.q.weight[:, :8]))

    model = Learned(use)
    table = profile(model, (5, 8))
    assert table.uneven == {"q.weight"}
    prices = table.prices({name: p.numel() for name, p in model.named_parameters()})
    assert "q.weight" not in prices
    assert prices["k.weight"] == 5


def test_parts_that_together_cover_a_weight_evenly_have_one_price():
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    sizes = {name: p.numel() for name, p in attention.named_parameters()}
    query, keys = torch.zeros(1, 3, 16), torch.zeros(1, 7, 16)
    assert "in_proj_weight" not in profile(attention, (query, keys, keys)).prices(sizes)
    same = torch.zeros(1, 7, 16)
    assert profile(attention, (same, keys, keys)).prices(sizes)["in_proj_weight"] == 7


def test_what_is_written_to_a_buffer_depends_on_the_input():
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body, self.head = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            out = torch.empty(x.shape[0], 4)
            out[:, :2] = self.body(self.stem(x))[:, :2]
            out[:, 2:].copy_(self.body(self.stem(x))[:, 2:])
            return self.head(out)

    assert network_ends(Filled(), (2, 4)) == ({"stem"}, {"head"})


class AfterFourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(torch.fft.fft(x).real).relu()
        return self.c(y) + torch.cdist(y, y).mean()


def test_products_in_which_zeros_save_nothing_pass_on_what_they_are_made_of():
    assert isoflop.network_ends(AfterFourier(), (4, 12)) == ({"a"}, {"c"})
    model, plan = isoflop.transform(
        AfterFourier(), isoflop.SparseWide(0.5, dense_ends=False), example_inputs=(4, 12)
    )
    assert model(torch.randn(4, 12)).shape == (4, 5)
    assert {layer.parameter for layer in plan.sparse_layers} == {"a.weight", "c.weight"}
