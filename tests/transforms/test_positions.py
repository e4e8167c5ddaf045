"""No BatchNorm where a convolution has one position per sample."""

import json
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import isoflop
from isoflop.errors import WideningError
from isoflop.transforms import TRANSFORMS

NAMES = ("parallel", "factorized", "doped", "low_rank")
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class Gate(nn.Module):
    """Squeeze-and-excitation around a convolution, in any number of dimensions."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.first, self.body = conv(3, 16, 3, padding=1), conv(16, 16, 3, padding=1)
        self.pool = POOLS[dims](1)
        self.squeeze, self.excite = conv(16, 16, 1), conv(16, 16, 1)
        self.last = conv(16, 4, 1)

    def forward(self, x):
        y = self.body(torch.relu(self.first(x)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(self.pool(y)))))
        return self.last(y * gate)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dims", CONVOLUTIONS)
def test_gates_train_on_a_single_sample_and_the_plan_names_them(name, dims):
    shape = (1, 3, *[6] * dims)
    config = TRANSFORMS.get(name)(0.5)
    model: Any
    model, plan = isoflop.transform(Gate(dims), config, example_inputs=shape)
    model.train()(torch.randn(shape)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    other = {layer.source: layer.nonlinearity for layer in plan.sparse_layers}
    assert other == {"body": None, "squeeze": "relu", "excite": "relu"}
    assert (
        "relu without BatchNorm, where the output has one position per sample or no batch: squeeze, "
        "excite" in (str(plan).splitlines()[-1])
    )
    norms = [path for path, m in model.named_modules() if "BatchNorm" in type(m).__name__]
    assert norms
    assert all(path.startswith("body.") for path in norms)
    assert isoflop.Plan.from_json(plan.to_json()) == plan
    meta = isoflop.transform(Gate(dims).to("meta"), config, example_inputs=shape)[1]
    assert meta == plan


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dims", CONVOLUTIONS)
def test_a_convolution_without_a_batch_has_no_norm(name, dims):
    conv, shape = CONVOLUTIONS[dims], [6] * dims
    body = nn.Sequential(conv(16, 16, 3), nn.ReLU(), conv(16, 16, 1))
    dense = nn.Sequential(conv(3, 16, 1), body, conv(16, 4, 1))
    model, plan = isoflop.transform(
        dense, TRANSFORMS.get(name)(0.5), example_inputs=torch.randn(3, *shape)
    )
    assert {layer.nonlinearity for layer in plan.sparse_layers} == {"relu"}
    assert model(torch.randn(3, *shape)).shape == dense(torch.randn(3, *shape)).shape


def test_a_norm_that_was_chosen_and_cannot_stand_is_refused_by_the_layer():
    dense = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(3)))
    config = isoflop.SparseParallel(0.5, nonlinearity="batchnorm_relu")
    with pytest.raises(WideningError, match=r"once 1 \(Conv2d\) is replaced.*4D"):
        isoflop.transform(dense, config, example_inputs=torch.randn(8, 4, 4))


def test_a_nonlinearity_that_was_chosen_stays():
    config = isoflop.SparseParallel(0.5, nonlinearity="batchnorm_relu")
    model, plan = isoflop.transform(Gate(2), config, example_inputs=(2, 3, 6, 6))
    assert any(path.startswith("squeeze.nonlinearities.0.0") for path, _ in model.named_modules())
    assert all(layer.nonlinearity is None for layer in plan.layers)
    assert "without BatchNorm" not in str(plan)


def test_transposed_convolutions_go_by_their_input():
    dense = nn.Sequential(
        nn.ConvTranspose2d(8, 8, 1),
        nn.ConvTranspose2d(8, 8, 4),
        nn.ConvTranspose2d(8, 8, 2, stride=2),
        nn.ConvTranspose2d(8, 3, 2, stride=2),
    )
    model, plan = isoflop.transform(
        dense, isoflop.SparseFactorized(0.5), example_inputs=(1, 8, 1, 1)
    )
    model.train()(torch.randn(1, 8, 1, 1)).sum().backward()
    other = {layer.source: layer.nonlinearity for layer in plan.sparse_layers}
    assert other == {"1": "relu", "2": None}


def test_plans_of_before_are_read():
    _, plan = isoflop.transform(
        Gate(1), isoflop.SparseParallel(0.5, nonlinearity="relu"), example_inputs=(1, 3, 6)
    )
    data = json.loads(plan.to_json())
    for layer in data["layers"]:
        del layer["nonlinearity"]
    assert isoflop.Plan.from_dict(data) == plan


def test_mobilenet_v3_trains_on_a_single_image():
    dense = torchvision.models.mobilenet_v3_small(num_classes=5)
    model, _ = isoflop.transform(dense, isoflop.SparseParallel(0.75), example_inputs=(1, 3, 64, 64))
    model.train()(torch.randn(1, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
