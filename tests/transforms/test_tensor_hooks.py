"""Hooks on parameters, and marks on them, stay with the parameters of the same names."""

from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop.transforms import TRANSFORMS


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5)
        self.factor: Any = 0.5
        self.calls = 0

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    def slowed(self, grad):
        self.calls += 1
        return self.factor * grad


def zeros(grad):
    return torch.zeros_like(grad)


def clip(parameter):
    parameter.grad.fill_(2.0)


def transformed(*args, **options) -> Any:
    return isoflop.transform(*args, **options)[0]


def backward(model):
    model(torch.randn(4, 12)).sum().backward()


def test_wider_weight_keeps_hooks_that_fit_any_shape():
    dense: Any = Net()
    dense.b.weight.register_hook(zeros)
    dense.c.weight.register_post_accumulate_grad_hook(clip)
    model = transformed(dense, isoflop.SparseWide(0.5), example_inputs=(4, 12))
    backward(model)
    assert not model.b.weight.grad.any()
    assert (model.c.weight.grad == 2.0).all()
    assert model.a.weight.grad.any()


def test_hook_of_the_model_uses_the_new_model():
    dense: Any = Net()
    dense.b.bias.register_hook(dense.slowed)
    dense.a.weight.register_hook(lambda grad: grad * dense.factor)
    model = transformed(dense, isoflop.SparseParallel(0.5), example_inputs=(4, 12))
    model.factor = 0.0
    backward(model)
    assert not model.b.bias.grad.any()
    assert not model.a.weight.grad.any()
    assert (model.calls, dense.calls) == (1, 0)


def test_frozen_parameter_keeps_its_hook_and_stays_frozen():
    dense: Any = Net()
    dense.a.weight.register_hook(zeros)
    dense.a.weight.requires_grad_(False)
    model = transformed(dense, isoflop.SparseParallel(0.5), example_inputs=(4, 12))
    assert not model.a.weight.requires_grad
    model.a.weight.requires_grad_()
    backward(model)
    assert not model.a.weight.grad.any()


@pytest.mark.parametrize("transform", [isoflop.SparseParallel, isoflop.SparseDoped])
def test_hook_on_a_weight_that_goes_is_refused(transform):
    dense: Any = Net()
    dense.b.weight.register_post_accumulate_grad_hook(clip)
    with pytest.raises(isoflop.IsoflopError, match=r"'b.weight'.*other weights take its place"):
        isoflop.transform(dense, transform(0.5), example_inputs=(4, 12))


def test_hook_with_tensors_of_the_old_shape_is_refused():
    dense: Any = Net()
    kept = torch.ones(24, 16)
    dense.b.weight.register_hook(lambda grad: grad * kept)
    with pytest.raises(isoflop.IsoflopError, match=r"'b.weight'.*may not be made"):
        isoflop.transform(dense, isoflop.SparseWide(0.5), example_inputs=(4, 12))


def test_hook_with_an_optimizer_is_refused():
    dense: Any = Net()
    optimizer = torch.optim.SGD([dense.a.weight], lr=0.1)
    dense.a.weight.register_post_accumulate_grad_hook(lambda parameter: optimizer.step())
    with pytest.raises(isoflop.IsoflopError, match=r"'a.weight'.*optimizer"):
        isoflop.transform(dense, isoflop.SparseParallel(0.5), example_inputs=(4, 12))


@pytest.mark.parametrize("name", isoflop.list_transforms())
def test_marks_go_to_all_parameters_that_take_the_place(name):
    class Attending(Net):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            for parameter in self.parameters():
                parameter.no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

        def forward(self, x):
            x = self.a(x)
            return self.c(self.b(self.attention(x, x, x)[0]))

    model = transformed(Attending(), TRANSFORMS.get(name)(0.5), example_inputs=(2, 4, 12))
    assert all(vars(p)["no_weight_decay"] for p in model.parameters())
