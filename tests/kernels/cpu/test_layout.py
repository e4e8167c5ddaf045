import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isoflop.kernels.cpu.layout import (
    LayoutConv2d,
    from_batch_innermost,
    is_batch_innermost,
    layout_modules,
    to_batch_innermost,
)
from isoflop.surgery import replace_modules

POOLS = {
    "max": nn.MaxPool2d(3, 2, 1),
    "avg": nn.AvgPool2d(2, count_include_pad=False, padding=1),
    "adaptive_max": nn.AdaptiveMaxPool2d(3),
    "adaptive_avg": nn.AdaptiveAvgPool2d(1),
}


def keep_layout(model):
    return replace_modules(model, layout_modules(model))


def leaf(x, innermost):
    x = to_batch_innermost(x) if innermost else x.clone()
    return x.detach().requires_grad_()


def run(module, x, innermost):
    """Return output and input gradient of the module in one of the layouts."""
    x = leaf(x, innermost)
    y = module(x)
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(y, x, torch.empty_like(y).copy_(torch.randn(y.shape)))
    return y, gradient


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (1, 4, 5, 6), (4, 1, 1, 1), (0, 2, 3, 3)])
def test_conversions_keep_the_values(shape):
    x = torch.randn(shape)
    y = to_batch_innermost(x)
    assert is_batch_innermost(y)
    assert torch.equal(x, y)
    z = from_batch_innermost(y)
    assert z.is_contiguous()
    assert torch.equal(x, z)
    assert to_batch_innermost(y) is y
    assert from_batch_innermost(x) is x


def test_other_layouts_are_told_apart():
    x = torch.randn(3, 4, 5, 6)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert not is_batch_innermost(x)
    assert not is_batch_innermost(channels_last)
    assert not is_batch_innermost(x[0])
    assert from_batch_innermost(channels_last) is channels_last
    assert torch.equal(to_batch_innermost(channels_last), x)


def test_gradients_go_back_in_the_layout_that_came():
    x = torch.randn(3, 4, 5, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        to_batch_innermost(x), x, to_batch_innermost(torch.ones_like(x))
    )
    assert gradient.is_contiguous()
    x = leaf(x.detach(), innermost=True)
    (gradient,) = torch.autograd.grad(from_batch_innermost(x), x, torch.ones(3, 4, 5, 6))
    assert is_batch_innermost(gradient)
    assert torch.autograd.gradcheck(
        to_batch_innermost, torch.randn(2, 3, 2, 2).double().requires_grad_()
    )


@pytest.mark.parametrize(
    "operation", [F.relu, lambda x: x + x, lambda x: F.dropout(x, 0.5), F.gelu]
)
def test_elementwise_operations_keep_the_layout(operation):
    y, gradient = run(operation, torch.randn(3, 4, 5, 6), innermost=True)
    assert is_batch_innermost(y)
    assert is_batch_innermost(gradient)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training, momentum):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(4, momentum=momentum).train(training)
    nn.init.normal_(plain.weight)
    kept = keep_layout(copy.deepcopy(plain))
    x = 3 * torch.randn(5, 4, 6, 7) + 2
    y, gradient = run(plain, x, innermost=False)
    ours, our_gradient = run(kept, x, innermost=True)
    assert is_batch_innermost(ours)
    assert is_batch_innermost(our_gradient)
    torch.testing.assert_close(ours, y)
    torch.testing.assert_close(our_gradient, gradient)
    # The running variance is the unbiased one.
    torch.testing.assert_close(kept.state_dict(), plain.state_dict())
    again, _ = run(kept, x, innermost=False)
    assert again.is_contiguous()


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name):
    x = torch.randn(5, 4, 6, 7)
    y, gradient = run(POOLS[name], x, innermost=False)
    ours, our_gradient = run(keep_layout(POOLS[name]), x, innermost=True)
    assert is_batch_innermost(ours)
    torch.testing.assert_close(ours, y)
    torch.testing.assert_close(our_gradient, gradient)


@pytest.mark.parametrize("innermost", [True, False])
def test_dense_convolutions(innermost):
    plain = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    kept = keep_layout(copy.deepcopy(plain))
    assert isinstance(kept, LayoutConv2d)
    x = torch.randn(5, 4, 6, 7)
    y, gradient = run(plain, x, innermost=False)
    kept.batch_innermost = innermost
    ours, our_gradient = run(kept, x, innermost=True)
    assert is_batch_innermost(ours) == innermost
    assert is_batch_innermost(our_gradient)
    torch.testing.assert_close(ours, y)
    torch.testing.assert_close(our_gradient, gradient)


def test_modules_are_replaced_with_all_that_they_have():
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(), shared, nn.MaxPool2d(2))
    model[0].register_buffer("weight_mask", torch.ones(4, 3, 3, 3, dtype=torch.bool))
    calls = []
    shared.register_forward_hook(lambda *_: calls.append(1))
    model.eval()
    parameters, state = list(model.parameters()), model.state_dict()
    x = torch.randn(2, 3, 8, 8)
    y = model(x)
    assert keep_layout(model) is model
    assert model[1] is model[3]
    assert type(model[1]) is not nn.BatchNorm2d
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == list(state)
    assert not model[1].training
    torch.testing.assert_close(model(to_batch_innermost(x)), y)
    assert len(calls) == 4
    model[1].register_buffer("other", torch.ones(1))
    assert not hasattr(shared, "other")


def test_pooling_with_indices_is_left_alone():
    pool = nn.MaxPool2d(2, return_indices=True)
    assert keep_layout(pool) is pool
