"""What every row of the variants must do."""

import pytest
import torch
from torch import nn

from isoflop.kernels.cpu.conv2d import SparseConv2d
from isoflop.kernels.cpu.linear import SparseLinear
from isoflop.kernels.cpu.variants import VARIANTS

TOLERANCE = {None: 1e-5, torch.bfloat16: 2e-2}


def layers():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.Linear(30, 20)
    yield SparseConv2d.from_dense(conv, torch.rand_like(conv.weight) < 0.3), (5, 6, 9, 9)
    yield SparseLinear.from_dense(linear, torch.rand_like(linear.weight) < 0.3), (7, 30)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_computes_what_the_dense_layer_does(name):
    variant = VARIANTS[name]
    assert variant.name == name
    if not variant.runs_here():
        pytest.skip(f"no {variant.needs} on this processor")
    for layer, shape in layers():
        assert layer.backend == "sparse"
        if not variant.takes(layer.index):
            continue
        x = torch.randn(shape)
        found = []
        for run in (layer.to_dense(), layer):
            layer.backend = name
            own = x.clone().requires_grad_()
            y = run(own)
            y.square().mean().backward()
            found.append((y, own.grad))
        for one, other in zip(*found, strict=True):
            scale = TOLERANCE[variant.rounds_to]
            torch.testing.assert_close(other, one, rtol=scale, atol=scale)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_is_whole(variant):
    assert (variant.linear is None) == (variant.conv2d is None)
    # What may be missing here is named in the error for those who ask for it.
    assert variant.runs_here() or variant.needs
