"""The kinds of layers that can be replaced besides Linear and ordinary convolutions."""

import copy
import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import isoflop
from isoflop.flops.trace import profile
from isoflop.transforms import TRANSFORMS
from isoflop.transforms.doped import DopedLayer
from isoflop.transforms.factorized import FactorizedLayer
from isoflop.transforms.layers import LayerShape, unflipped
from isoflop.transforms.parallel import ParallelBranches

KEEPING_WIDTHS = ("parallel", "factorized", "doped")
SPARSITIES = (0.5, 0.6, 0.75, 0.9)

TRANSPOSED: dict[str, Any] = {
    "doubling": nn.ConvTranspose2d(8, 16, 2, stride=2),
    "padded": nn.ConvTranspose2d(8, 16, 5, stride=3, padding=2, output_padding=1, bias=False),
    "dilated": nn.ConvTranspose2d(8, 16, (3, 1), dilation=2),
    "grouped": nn.ConvTranspose2d(8, 16, 3, stride=2, padding=1, groups=4),
}


def randomised(module: nn.Module) -> Any:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def product(down: Any, up: Any) -> Tensor:
    """Weight of the transposed convolution that two factors multiply to."""
    groups, rank = up.groups, up.in_channels // up.groups
    merged = torch.einsum(
        "gri,gro...->gio...",
        down.weight.reshape(groups, rank, -1),
        up.weight.reshape(groups, rank, *up.weight.shape[1:]),
    )
    return merged.flatten(0, 1)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_are_exact_without_nonlinearity(name):
    dense = copy.deepcopy(TRANSPOSED[name])
    x = torch.randn(2, 8, 7, 7)
    factorized = randomised(FactorizedLayer(dense, 3 * dense.groups, "none"))
    doped = randomised(DopedLayer(dense, 2 * dense.groups, "none"))
    parallel = randomised(ParallelBranches(dense, 2, "none"))
    with torch.no_grad():
        weights = {
            factorized: product(factorized.down, factorized.up),
            doped: doped.sparse.weight + product(*doped.low_rank),
            parallel: parallel.branches[0].weight + parallel.branches[1].weight,
        }
        for module, weight in weights.items():
            dense.weight.copy_(weight)
            if dense.bias is not None:
                dense.bias.copy_(module.bias)
            expected = dense(x)
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
            size = [n + (max(dense.stride) > 1) for n in expected.shape[2:]]
            if name != "padded":  # its outputs are as large as the stride allows
                torch.testing.assert_close(
                    module(x, output_size=size), dense(x, size), rtol=1e-4, atol=1e-4
                )


def test_shapes_of_transposed_and_flipped_layers():
    assert LayerShape.of(nn.ConvTranspose2d(6, 8, (3, 5))) == LayerShape(6, 8 * 15, 1)
    assert LayerShape.of(nn.ConvTranspose1d(6, 4, 3, groups=2)) == LayerShape(3, 2 * 3, 2)
    assert LayerShape.of(nn.ConvTranspose3d(6, 6, 3, groups=6)).depthwise
    assert LayerShape.of(Conv1D(12, 5)) == LayerShape(5, 12, 1)
    linear: Any = unflipped(Conv1D(12, 5))
    assert (linear.in_features, linear.out_features) == (5, 12)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", KEEPING_WIDTHS)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_transposed_convolutions_of_every_dimension_meet_their_budget(dims, name, sparsity):
    conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    transposed: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    shape = (1, 3, *[4] * dims)
    dense = nn.Sequential(conv(3, 8, 1), transposed(8, 12, 3, 2), conv(12, 2, 1))
    new, plan = isoflop.transform(
        dense, TRANSFORMS.get(name)(sparsity), example_inputs=shape, scope="layers"
    )
    assert plan.macs == plan.dense_macs
    assert {layer.source for layer in plan.sparse_layers} == {"1"}
    assert plan.unmasked_macs == profile(new, shape).macs
    assert new(torch.randn(2, *shape[1:])).shape == dense(torch.randn(2, *shape[1:])).shape


def test_the_rank_of_a_transposed_convolution():
    dense = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 3), nn.Conv2d(12, 2, 1))
    new: Any
    new, _ = isoflop.transform(dense, isoflop.SparseFactorized(0.5), example_inputs=(1, 3, 4, 4))
    rank = math.ceil(8 * 108 / (8 + 108) / 0.5)
    assert new[1].down.weight.shape == (rank, 8, 1, 1)
    assert new[1].up.weight.shape == (rank, 12, 3, 3)
    wide, plan = isoflop.transform(
        dense, isoflop.LowRank(width=2.0, dense_ends=False), example_inputs=(1, 3, 4, 4)
    )
    rank = math.ceil(8 * 108 / (2 * (8 + 108)))
    assert wide.get_parameter("1.down.weight").shape == (rank, 16, 1, 1)
    assert wide.get_parameter("1.up.weight").shape == (rank, 24, 3, 3)
    assert plan.macs == plan.dense_macs


class Upsampler(nn.Module):
    """Asks its transposed convolution for an output size, as a U-Net does."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.down(x), output_size=x.shape[2:]))


@pytest.mark.parametrize("name", KEEPING_WIDTHS)
def test_output_sizes_are_passed_on(name):
    model, plan = isoflop.transform(
        Upsampler(), TRANSFORMS.get(name)(0.5), example_inputs=(1, 3, 10, 10)
    )
    assert {layer.source for layer in plan.sparse_layers} == {"up"}
    assert model(torch.randn(1, 3, 10, 10)).shape == (1, 3, 10, 10)


@pytest.mark.parametrize("name", KEEPING_WIDTHS)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_flipped_linear_is_replaced_like_a_linear(name, sparsity):
    plans = {}
    for kind in ("flipped", "linear"):
        middle = Conv1D(24, 16) if kind == "flipped" else nn.Linear(16, 24)
        model = nn.Sequential(nn.Linear(4, 16), middle, nn.Linear(24, 3))
        new, plans[kind] = isoflop.transform(
            model, TRANSFORMS.get(name)(sparsity), example_inputs=(2, 5, 4)
        )
        assert new(torch.randn(2, 5, 4)).shape == (2, 5, 3)
    shapes = {k: [(x.shape, x.nnz) for x in plan.layers] for k, plan in plans.items()}
    assert shapes["flipped"] == shapes["linear"]
    assert plans["flipped"].sparse_layers[0].dense_shape == (16, 24)


def test_fans_of_transposed_and_flipped_weights():
    # At sparsity 0, all sizes stay and only the draw is new: Kaiming's, of weights without spread.
    config = isoflop.SparseWide(0.0)
    dense = nn.Sequential(nn.Linear(4, 400), Conv1D(100, 400), nn.Linear(100, 3))
    nn.init.ones_(cast(Conv1D, dense[1]).weight)
    fan_in_fan_out: Any
    fan_in_fan_out, _ = isoflop.transform(dense, config, example_inputs=(1, 4))
    up = nn.ConvTranspose2d(32, 64, 3, groups=2)
    nn.init.ones_(up.weight)
    upward, _ = isoflop.transform(
        nn.Sequential(nn.Conv2d(3, 32, 1), up, nn.Conv2d(64, 3, 1)),
        config,
        example_inputs=(1, 3, 4, 4),
    )
    # Fan-in 400; fan-out 9 · 64 / 2.
    std = fan_in_fan_out.get_parameter("1.weight").std().item()
    assert std == pytest.approx(math.sqrt(2 / 400), rel=0.05)
    std = upward.get_parameter("1.weight").std().item()
    assert std == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.05)
    x = torch.randn(64, 400)
    assert fan_in_fan_out[1](x).std().item() == pytest.approx(math.sqrt(2), rel=0.1)


class Reader(nn.Module):
    """Reads attributes of its layers, as the models of transformers and timm do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.middle
        x = self.stem(x).to(device=middle.weight.device, dtype=middle.weight.dtype)
        x = middle(x).view(-1, middle.out_features)
        assert middle.in_features == 8
        assert middle.bias is not None
        return self.head(x + middle.bias.mean())


@pytest.mark.parametrize("name", KEEPING_WIDTHS)
def test_attributes_of_replaced_layers_can_be_read(name):
    dense = Reader().eval()
    model: Any
    model, plan = isoflop.transform(dense, TRANSFORMS.get(name)(0.5), example_inputs=(1, 4))
    assert {layer.source for layer in plan.sparse_layers} == {"middle"}
    assert model(torch.randn(3, 4)).shape == (3, 2)
    assert not any(module.training for module in model.modules())
    middle = model.middle
    assert "weight" not in dict(middle.named_parameters())
    assert "weight" not in middle.state_dict()
    assert middle.weight is next(p for p in middle.parameters() if p.ndim == 2)
    other, _ = isoflop.transform(dense, TRANSFORMS.get(name)(0.5), example_inputs=(1, 4), seed=1)
    other.load_state_dict(model.state_dict())
    assert copy.deepcopy(model).middle.out_features == 6


@pytest.mark.parametrize("name", KEEPING_WIDTHS)
def test_attributes_of_replaced_convolutions_can_be_read(name):
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    dense = nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.Conv2d(16, 2, 1))
    new, _ = isoflop.transform(dense, TRANSFORMS.get(name)(0.5), example_inputs=(1, 3, 8, 8))
    layer = new.get_submodule("1")
    for attribute in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups"):
        assert getattr(layer, attribute) == getattr(conv, attribute)


@pytest.mark.parametrize("name", KEEPING_WIDTHS)
def test_a_weight_that_a_parent_multiplies_by_is_not_replaced(name):
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.proj, self.both, self.free, self.head = (
                nn.Linear(4, 4) for _ in range(5)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(self.stem(x), self.proj.weight, self.proj.bias)
            x = F.linear(self.both(x), self.both.weight)
            return self.head(self.free(x))

    model, plan = isoflop.transform(Parent(), TRANSFORMS.get(name)(0.5), example_inputs=(1, 4))
    assert {layer.source for layer in plan.sparse_layers} == {"free"}
    assert type(model.get_submodule("proj")) is nn.Linear


@pytest.mark.parametrize("name", KEEPING_WIDTHS)
def test_tied_weights_are_not_replaced(name):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    model.get_submodule("1").register_parameter("weight", model.get_parameter("3.weight"))
    new, plan = isoflop.transform(model, TRANSFORMS.get(name)(0.5), example_inputs=(1, 4))
    assert {layer.source for layer in plan.sparse_layers} == {"2"}
    assert new.get_parameter("1.weight") is new.get_parameter("3.weight")


@pytest.mark.parametrize("name", KEEPING_WIDTHS)
def test_a_bias_that_is_constant_stays_so(name):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    bias = nn.init.constant_(model.get_parameter("1.bias"), -2.0)
    new, _ = isoflop.transform(model, TRANSFORMS.get(name)(0.5), example_inputs=(1, 4))
    assert torch.equal(new.get_parameter("1.bias"), bias)


def test_layer_norm_is_for_linear_layers_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2))
    new: Any
    for kind, width in ((isoflop.SparseParallel, 6), (isoflop.SparseDoped, 6)):
        config = kind(0.5, nonlinearity="layernorm_gelu")
        new, plan = isoflop.transform(model, config, example_inputs=(1, 4))
        norms = [m for m in new.modules() if isinstance(m, nn.LayerNorm)]
        assert {norm.normalized_shape for norm in norms} == {(width,)}
        assert plan.macs == plan.dense_macs
        assert new(torch.randn(2, 3, 4)).isfinite().all()
    conv = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    with pytest.raises(isoflop.IsoflopError, match=r"'layernorm_gelu'.*Conv2d.*batchnorm_relu"):
        isoflop.transform(conv, config, example_inputs=(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["parallel", "factorized", "doped", "low_rank"])
def test_hooks_are_around_the_whole_of_what_takes_a_layers_place(name):
    calls = []

    def before(module, args):
        calls.append(tuple(args[0].shape))

    def after(module, args, output):
        calls.append(tuple(output.shape))
        return 2 * output

    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    model[1].register_forward_pre_hook(before)
    model[1].register_forward_hook(after)
    new: Any
    new, _ = isoflop.transform(model, TRANSFORMS.get(name)(0.5), example_inputs=(3, 8))
    calls.clear()
    x = torch.randn(3, 8)
    y = new(x)
    assert len(calls) == 2
    assert calls[0][0] == calls[1][0] == 3
    doubled = 2 * type(new[1]).forward(new[1], new[0](x))
    torch.testing.assert_close(y, new[2](doubled))
