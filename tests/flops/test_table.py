from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.zoo import Experts
from torch import nn

import isoflop
from isoflop.errors import InputError
from isoflop.flops.trace import network_ends, profile
from isoflop.lab.models.resnet import resnet18_cifar
from isoflop.masks import set_mask


class Function(nn.Module):
    """A module made of a function, with parameters."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.randn(*shape)))

    def forward(self, *inputs):
        return self.function(self, *inputs)


def test_the_published_counts():
    assert profile(resnet18_cifar(num_classes=100), (1, 3, 32, 32)).macs == 555_468_800
    assert profile(torchvision.models.resnet18(), (1, 3, 224, 224)).macs == 1_814_073_344


def test_flops_are_twice_and_training_six_times_the_macs():
    # ResNet-18 on ImageNet for 90 epochs: the paper's figure 1 shows 1.26 exaFLOPs.
    table = profile(torchvision.models.resnet18(), (1, 3, 224, 224))
    assert table.flops == 2 * table.macs
    assert table.training_flops * 1_281_167 * 90 == pytest.approx(1.2616e18, rel=0.01)


def test_counts_scale_with_the_batch():
    model = torchvision.models.mobilenet_v2()
    assert profile(model, (5, 3, 64, 64)).macs == 5 * profile(model, (1, 3, 64, 64)).macs


def test_a_model_on_the_meta_device_needs_no_memory():
    with torch.device("meta"):
        layer = nn.Linear(10**6, 10**6, bias=False)
    assert profile(layer, torch.empty(1, 10**6, device="meta")).macs == 10**12


def test_nothing_is_changed_by_profiling():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    profile(model, (2, 3, 8, 8))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


@settings(max_examples=25, deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    transposed=st.booleans(),
)
def test_convolutions(dims, groups, per_group, kernel, stride, padding, dilation, transposed):
    kinds = {
        (1, False): nn.Conv1d,
        (2, False): nn.Conv2d,
        (3, False): nn.Conv3d,
        (1, True): nn.ConvTranspose1d,
        (2, True): nn.ConvTranspose2d,
        (3, True): nn.ConvTranspose3d,
    }
    inputs, outputs = groups * per_group, groups * 2
    layer = kinds[dims, transposed](
        inputs, outputs, kernel, stride, padding=padding, dilation=dilation, groups=groups
    )
    x = torch.zeros(2, inputs, *[7] * dims)
    table = profile(layer, x)
    # Each weight multiplies once per output position, or per input position when transposed.
    positions = (x if transposed else layer(x)).flatten(2).shape[2]
    assert table.macs == 2 * positions * layer.weight.numel()
    assert table.by_parameter() == {"weight": table.macs}


CASES = {
    "linear": (nn.Linear(4, 6), [(2, 3, 4)], 2 * 3 * 24),
    "linear on a vector": (nn.Linear(4, 6), [(4,)], 24),
    "bilinear": (nn.Bilinear(4, 5, 6), [(2, 4), (2, 5)], 2 * 120),
    "functional": (
        Function(lambda m, x: F.linear(F.relu(F.linear(x, m.w)), m.v), w=(5, 4), v=(3, 5)),
        [(2, 4)],
        2 * (20 + 15),
    ),
    "matmul": (Function(lambda m, x, y: x @ y), [(2, 3, 4), (2, 4, 5)], 120),
    "einsum": (
        Function(lambda m, x: torch.einsum("bij,jk->bik", x, m.w), w=(4, 5)),
        [(2, 3, 4)],
        2 * 3 * 20,
    ),
    "matrix times vector": (Function(lambda m, x: m.w @ x, w=(5, 4)), [(4,)], 20),
    "dot": (Function(lambda m, x, y: torch.dot(x, y)), [(7,), (7,)], 7),
    "attention": (
        Function(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v)),
        [(2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8)],
        2 * (2 * 4 * 5 * 6 * 8),
    ),
    "multi-head attention": (
        nn.MultiheadAttention(16, 4, batch_first=True),
        [(2, 5, 16)] * 3,
        2 * 5 * 4 * 16 * 16 + 2 * (2 * 4 * 5 * 5 * 4),
    ),
    "transformer layer": (
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        [(2, 5, 16)],
        2 * 5 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * (2 * 4 * 5 * 5 * 4),
    ),
    "lstm": (nn.LSTM(8, 16, 2, batch_first=True), [(2, 5, 8)], 2 * 5 * 4 * 16 * (8 + 3 * 16)),
    "gru": (nn.GRU(8, 16, batch_first=True), [(2, 5, 8)], 2 * 5 * 3 * 16 * (8 + 16)),
}


@pytest.mark.parametrize("case", CASES)
def test_operations(case):
    model, shapes, macs = CASES[case]
    table = profile(model, tuple(torch.zeros(shape) for shape in shapes))
    assert table.macs == table.dense_macs == macs


def test_products_of_activations_have_no_weight():
    table = profile(nn.MultiheadAttention(16, 4, batch_first=True), (torch.zeros(2, 5, 16),) * 3)
    assert sum(table.by_parameter().values()) == 2 * 5 * 4 * 16 * 16
    assert sum(row.macs for row in table.rows if not row.parameters) == 2 * (2 * 4 * 5 * 5 * 4)


def test_reused_modules_and_tied_weights_count_at_every_use():
    layer = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = layer.weight
    table = profile(nn.Sequential(layer, layer, tied), (3, 4))
    assert table.macs == 3 * 3 * 16
    assert table.by_parameter() == {"0.weight": 3 * 3 * 16}


def test_a_computed_weight_counts_for_the_parameter_it_is_made_of():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6, bias=False))
    (row,) = profile(model, (2, 4)).rows
    assert set(row.parameters) == {f"parametrizations.weight.original{i}" for i in range(2)}


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) * 3.0
        return self._conv_forward(x, weight, None)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight * self.weight.abs().amax(), None)


@pytest.mark.parametrize(("kind", "skipped"), [(Standardised, 0), (Scaled, 20)])
def test_zeros_count_where_they_stay_zeros(kind, skipped):
    conv = kind(3, 4, 1, bias=False)
    weight, macs = "weight", 4 * 12
    mask = torch.ones(4, 3, 1, 1, dtype=torch.bool)
    mask.view(-1)[:5] = False
    set_mask(conv, weight, mask)
    table = profile(conv, (1, 3, 2, 2))
    assert table.macs == macs - skipped
    assert table.recomputed == (set() if skipped else {weight})
    assert table.prices({weight: 12}) == ({weight: 4} if skipped else {})


def test_a_model_of_standardised_weights_is_told_why_it_has_no_budget():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *(Standardised(8, 8, 1) for _ in range(4)))
    model.extend([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)])
    with pytest.raises(isoflop.BudgetError, match=r"4 weights, such as '1.weight', are recomputed"):
        isoflop.transform(model, isoflop.SparseWide(0.9), example_inputs=(1, 3, 4, 4))


def test_a_gain_of_a_weight_is_no_weight_by_itself():
    class Gained(nn.Linear):
        def __init__(self):
            super().__init__(4, 6, bias=False)
            self.gain = nn.Parameter(torch.ones(6, 1))

        def forward(self, x):
            return nn.functional.linear(x, self.weight * self.gain)

    (row,) = profile(Gained(), (2, 4)).rows
    assert row.parameters == ("weight",)


def test_experts_cost_what_their_rows_cost():
    table = profile(Experts(), (10, 8))
    assert table.by_parameter()["up"] == 10 * 16 * 32
    prices = table.prices({name: p.numel() for name, p in Experts().named_parameters()})
    assert prices["up"] == Fraction(10, 3)
    assert prices["middle.weight"] == 10


def test_what_follows_from_integer_inputs_alone_is_known():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, tokens):
            length = int((tokens != 0).sum(1).max())
            return self.head(self.embedding(tokens[:, :length]))

    tokens = torch.tensor([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0]])
    assert profile(Padded(), tokens).macs == 2 * 3 * 8
    with pytest.raises(InputError, match=r"`length = int.*register_widening_rule"):
        profile(Padded(), tokens.to("meta"))


def test_masks_scale_macs_exactly():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    mask = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    mask.view(-1)[:17] = True
    set_mask(model[0], "weight", mask)
    table = profile(model, (2, 3, 8, 8))
    assert table.macs == 2 * (17 * 36 + 2 * 4 * 36)
    assert table.dense_macs == 2 * (108 * 36 + 2 * 4 * 36)


def test_elementwise_work_is_apart():
    table = profile(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), (2, 4))
    assert table.elementwise_ops == {"relu": 12}
    assert table.macs == 48


def test_totals_by_module_include_children():
    model = torchvision.models.resnet18()
    table = profile(model, (1, 3, 64, 64))
    by_module = table.by_module()
    assert by_module[""] == table.macs
    assert by_module["layer1"] == sum(by_module[f"layer1.{i}"] for i in range(2))


def test_prints_and_becomes_plain_data():
    table = profile(nn.Linear(4, 6), (2, 4))
    assert "48" in str(table)
    assert table.to_dict()["macs"] == 48


def test_ends_follow_the_data_not_the_order_of_definition():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 2)
            self.body = nn.Linear(8, 8)
            self.stem = nn.Linear(4, 8)
            self.second_head = nn.Linear(8, 3)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.body(x)
            return self.head(x), self.second_head(x)

    assert network_ends(Backwards(), (1, 4)) == ({"stem"}, {"head", "second_head"})


def test_an_embedding_is_a_first_layer():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    first, last = network_ends(model, torch.zeros(1, 3, dtype=torch.long))
    assert (first, last) == ({"0"}, {"2"})


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"Linear cannot be traced.*\(1, 5\)"):
        profile(nn.Linear(4, 6), (1, 5))
