"""The formulas of each member of the family."""

import math
from typing import Any

import pytest
import torch
import torchvision
from tests.zoo import ZOO, cifar_resnet
from torch import nn

import isoflop
from isoflop.transforms.doped import DopedLayer
from isoflop.transforms.factorized import FactorizedLayer
from isoflop.transforms.layers import LayerShape
from isoflop.transforms.parallel import ParallelBranches


def transform(*args: Any, **options: Any) -> tuple[Any, isoflop.Plan]:
    return isoflop.transform(*args, **options)


def sandwich(middle: nn.Module, inputs: int = 8, outputs: int = 16) -> nn.Module:
    """A model whose one layer between its ends is `middle`."""
    return nn.Sequential(nn.Conv2d(3, inputs, 1), middle, nn.Conv2d(outputs, 4, 1))


LAYERS: dict[str, Any] = {
    "plain": nn.Conv2d(8, 16, 3, padding=1),
    "strided": nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
    "dilated": nn.Conv2d(8, 16, (3, 1), padding="same", dilation=2, padding_mode="reflect"),
    "grouped": nn.Conv2d(8, 16, 5, padding=2, groups=4),
}


def test_wide_grows_by_the_root_of_one_over_the_density():
    model, plan = transform(cifar_resnet(), isoflop.SparseWide(0.75), example_inputs=(1, 3, 32, 32))
    assert model.stem[0].out_channels == 16
    for layer in plan.sparse_layers:
        assert layer.shape[:2] == tuple(2 * size for size in layer.dense_shape[:2])
    # Uniform, but for the small layers that repair the rounding.
    assert all(
        layer.density == pytest.approx(plan.density, abs=2e-3) for layer in plan.sparse_layers
    )


def test_wide_depthwise_layers_have_their_own_sparsity():
    # Paper, appendix A.1.1: 1 - sqrt(1 - s), here 0.5 rather than 0.75.
    model = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.5)
    _, plan = transform(
        model, isoflop.SparseWide(0.75), example_inputs=(1, 3, 64, 64), scope="layers"
    )
    depthwise = [layer for layer in plan.sparse_layers if layer.shape[1] == 1]
    others = [layer for layer in plan.sparse_layers if layer.shape[1] > 1]
    assert len(depthwise) == 17
    assert all(layer.density == pytest.approx(0.5, abs=0.01) for layer in depthwise)
    assert all(layer.density == pytest.approx(0.25, abs=0.01) for layer in others)


@pytest.mark.parametrize(
    ("sparsity", "branches"),
    [(0.0, 1), (0.3, 2), (0.5, 2), (0.6, 3), (0.7, 3), (0.75, 4), (0.9, 10)],
)
def test_parallel_branches(sparsity, branches):
    config = isoflop.SparseParallel(sparsity)
    assert config.branches == branches
    model, plan = transform(sandwich(nn.Conv2d(8, 16, 3)), config, example_inputs=(1, 3, 9, 9))
    assert len(model[1].branches) == branches
    assert plan.macs == plan.dense_macs
    assert plan.density == pytest.approx(1 / branches, abs=1e-3)


@pytest.mark.parametrize("layer", LAYERS)
def test_one_linear_branch_is_the_dense_layer(layer):
    dense = LAYERS[layer]
    module: Any = ParallelBranches(dense, 1, "none")
    module.branches[0].weight.data.copy_(dense.weight)
    if dense.bias is not None:
        module.bias.data.copy_(dense.bias)
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(module(x), dense(x))


@pytest.mark.parametrize("layer", LAYERS)
def test_linear_doped_is_a_layer_plus_a_low_rank_one(layer):
    dense = LAYERS[layer]
    module: Any = DopedLayer(dense, 2 * dense.groups, "none")
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 8, 9, 9)
    down, up = module.low_rank
    merged = torch.einsum(
        "gor,gr...->go...",
        up.weight.reshape(dense.groups, -1, 2),
        down.weight.reshape(dense.groups, 2, *down.weight.shape[1:]),
    )
    with torch.no_grad():
        dense.weight.copy_(module.sparse.weight + merged.reshape(dense.weight.shape))
        if dense.bias is not None:
            dense.bias.copy_(module.bias)
    torch.testing.assert_close(module(x), dense(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_linear_factors_multiply_to_a_layer(layer):
    dense = LAYERS[layer]
    module: Any = FactorizedLayer(dense, 3 * dense.groups, "none")
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        merged = torch.einsum(
            "gor,gr...->go...",
            module.up.weight.reshape(dense.groups, -1, 3),
            module.down.weight.reshape(dense.groups, 3, *module.down.weight.shape[1:]),
        )
        dense.weight.copy_(merged.reshape(dense.weight.shape))
        if dense.bias is not None:
            dense.bias.copy_(module.bias)
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(module(x), dense(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.75, 0.9])
def test_ranks(sparsity):
    rows, columns = 64 * 9, 128
    shape = LayerShape.of(nn.Conv2d(64, 128, 3))
    assert shape == LayerShape(rows, columns, 1)
    size = rows * columns / (rows + columns)
    assert isoflop.SparseFactorized(sparsity).rank(shape) == math.ceil(size / (1 - sparsity))
    assert isoflop.SparseDoped(sparsity).rank(shape) == math.floor(sparsity * size)


def test_low_rank_divides_by_the_width():
    # The paper's printed formula multiplies; that would cost k^2 times the dense layer.
    model, plan = transform(
        sandwich(nn.Conv2d(8, 16, 3)), isoflop.LowRank(width=2.0), example_inputs=(1, 3, 9, 9)
    )
    rank = math.ceil(8 * 9 * 16 / (2 * (8 * 9 + 16)))
    assert model[1].down.weight.shape == (rank, 16, 3, 3)
    assert model[1].up.weight.shape == (32, rank, 1, 1)
    assert plan.density > 0.8
    assert isoflop.LowRank(0.75).factor == pytest.approx(2.0)


def test_low_rank_takes_a_width_or_a_sparsity():
    with pytest.raises(isoflop.IsoflopError, match="not both"):
        isoflop.LowRank(0.5, width=2.0)
    for bad in (0.5, float("nan"), float("inf")):
        with pytest.raises(isoflop.IsoflopError, match="at least 1"):
            isoflop.LowRank(width=bad)


def test_doped_factors_stay_dense():
    _, plan = transform(cifar_resnet(), isoflop.SparseDoped(0.5), example_inputs=(1, 3, 32, 32))
    kinds = {layer.parameter: layer.kind for layer in plan.layers}
    assert {k for name, k in kinds.items() if "low_rank" in name} == {"dense"}
    assert {k for name, k in kinds.items() if "sparse" in name} == {"sparse"}


@pytest.mark.parametrize(
    "kind", [isoflop.SparseParallel, isoflop.SparseFactorized, isoflop.SparseDoped]
)
def test_depthwise_layers_are_left_alone_and_sigma_is_selectable(kind):
    make, shape = ZOO["mobilenet_v2"]

    def count(model, of):
        return sum(isinstance(m, of) for m in model.modules())

    model, plan = transform(make(), kind(0.5), example_inputs=shape)
    linear, _ = transform(make(), kind(0.5, nonlinearity="none"), example_inputs=shape)
    assert all(layer.kind == "dense" for layer in plan.layers if layer.shape[1] == 1)
    assert count(model, nn.BatchNorm2d) > count(make(), nn.BatchNorm2d)
    assert count(linear, nn.BatchNorm2d) == count(make(), nn.BatchNorm2d)
    with pytest.raises(isoflop.UnknownNameError, match="Known: auto, none, batchnorm_relu"):
        kind(0.5, nonlinearity="tanh")


def test_linear_layers_get_relu_without_norm():
    make, shape = ZOO["mlp"]
    model, _ = transform(make(), isoflop.SparseParallel(0.5), example_inputs=shape)
    assert all(type(sigma) is nn.ReLU for sigma in model[3].nonlinearities)


def test_kaiming_counts_the_connections_that_are_left():
    shape = (1, 3, 16, 16)
    stds = {}
    for init in ("active_fan", "dense_fan"):
        model, plan = transform(
            cifar_resnet(), isoflop.SparseWide(0.75, init=init), example_inputs=shape
        )
        layer = max(plan.sparse_layers, key=lambda layer: layer.numel)
        weight = model.get_parameter(layer.parameter)
        fan_out = weight.shape[0] * 9
        density = layer.density if init == "active_fan" else 1.0
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (fan_out * density)), rel=0.02)
        stds[init] = weight.std().item()
    assert stds["active_fan"] > 1.9 * stds["dense_fan"]
    with pytest.raises(isoflop.IsoflopError, match="Known: active_fan, dense_fan"):
        isoflop.SparseWide(0.5, init="xavier")  # pyright: ignore[reportArgumentType]


def test_constants_of_the_dense_model_stay_constants():
    # Zero-initialised last norms of the residual blocks.
    dense = cifar_resnet()

    def zero_weights(model):
        return {n for n, p in model.named_parameters() if n.endswith("weight") and not p.any()}

    assert len(zero_weights(dense)) == 8
    model, _ = transform(dense, isoflop.SparseWide(0.5), example_inputs=(1, 3, 16, 16))
    assert zero_weights(model) == zero_weights(dense)


def test_statistics_start_anew():
    dense = cifar_resnet()
    dense.train()(torch.randn(8, 3, 16, 16) * 5 + 3)
    with pytest.warns(isoflop.TrainedModelWarning, match="has seen 1 batches"):
        model, _ = transform(dense, isoflop.SparseWide(0.5), example_inputs=(1, 3, 16, 16))
    for name, buffer in model.named_buffers():
        assert (buffer == (1 if name.endswith("running_var") else 0)).all()
