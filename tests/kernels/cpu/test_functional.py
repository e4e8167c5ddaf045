"""The reference of the kernels, which is also what runs without them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isoflop import kernels
from isoflop.errors import KernelError
from isoflop.kernels import ACTIVATIONS, SparseLinear, sparse_conv2d, sparse_linear
from isoflop.kernels.autotune.candidates import sparse_layer
from isoflop.masks import set_mask

EXPECTED = {"none": lambda x: x, "relu": torch.relu, "gelu": F.gelu, "silu": F.silu}


@pytest.mark.parametrize("backend", ["sparse", "dense"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(activation, backend):
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.Linear(6, 8)
    image, rows = torch.randn(2, 6, 5, 5), torch.randn(2, 3, 6)
    for layer, x in ((conv, image), (linear, rows)):
        set_mask(layer, "weight", torch.rand_like(layer.weight) < 0.3)
        sparse = sparse_layer(layer, layer.get_buffer("weight_mask"))
        assert sparse is not None
        sparse.activation, sparse.backend = activation, backend
        residual = torch.randn_like(layer(x))
        torch.testing.assert_close(sparse(x), EXPECTED[activation](layer(x)))
        torch.testing.assert_close(sparse(x, residual), EXPECTED[activation](layer(x) + residual))


@pytest.mark.skipif(not kernels.available(), reason="no compiled kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(6, 8)
    image, rows = torch.randn(2, 6, 5, 5), torch.randn(2, 3, 6)
    for layer, x in ((conv, image), (linear, rows)):
        set_mask(layer, "weight", torch.rand_like(layer.weight) < 0.3)
        sparse = sparse_layer(layer, layer.get_buffer("weight_mask"))
        assert sparse is not None
        bf16 = dtype is torch.bfloat16 and kernels.has_bfloat16()
        sparse.backend = "sparse_bfloat16" if bf16 else "sparse"
        gradients = []
        for cast in (False, True):
            # A layer before may have made it of the type.
            own = (x.to(dtype) if cast else x.to(dtype).float()).requires_grad_()
            with torch.autocast("cpu", dtype, enabled=cast):
                sparse.backend = "sparse" if cast else sparse.backend
                y = sparse(own)
            assert y.dtype is torch.float32
            y.square().sum().backward()
            assert own.grad is not None
            gradients.append([y, own.grad.float(), sparse.values.grad])
            sparse.zero_grad()
        y, expected = (g[0] for g in gradients)
        assert torch.equal(y, expected)
        assert torch.equal(gradients[0][1].to(dtype).float(), gradients[1][1])
        assert torch.equal(gradients[0][2], gradients[1][2])


def test_unknown_activations_and_wrong_residuals_are_refused():
    layer = SparseLinear.from_dense(nn.Linear(4, 4), torch.ones(4, 4, dtype=torch.bool))
    x = torch.randn(2, 4)
    with pytest.raises(KernelError, match="none, relu, gelu, silu"):
        sparse_linear(x, layer.values, layer.index, activation="tanh")
    with pytest.raises(KernelError, match="residual"):
        sparse_linear(x, layer.values, layer.index, residual=torch.randn(4))
    with pytest.raises(KernelError, match="residual"):
        sparse_conv2d(x[:, :, None, None], layer.values, layer.index, residual=torch.randn(4, 1, 1))
