"""Habits of real model code that must train in compressed storage as they do in masked storage."""

# Models here are told apart by what they do, not by their types.
# pyright: reportOptionalSubscript=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import isoflop
from isoflop.kernels import SparseLayer, densify, densify_

STEPS = 6


class Model(nn.Module):
    """Three layers in a row, which `prepare` may store elsewhere too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.prepare()

    def prepare(self):
        pass

    def middle(self, x):
        return self.b(x)

    def forward(self, x):
        return self.c(self.middle(self.a(x)).tanh())

    def loss(self, x, y):
        return (self(x) - y).square().mean()


class PlainList(Model):
    def prepare(self):
        self.order = [self.a, self.b, self.c]

    def forward(self, x):
        return functools.reduce(lambda x, layer: layer(x).tanh(), self.order, x)


class Dictionary(Model):
    def prepare(self):
        self.parts = {"main": {"b": self.b}}

    def middle(self, x):
        return self.parts["main"]["b"](x)


class Partial(Model):
    def prepare(self):
        self.function: Any = functools.partial(self.b)

    def middle(self, x):
        return self.function(x)


class BoundMethod(Partial):
    def prepare(self):
        self.function = self.b.forward


class Closure(Partial):
    def prepare(self):
        layer = self.b
        self.function = lambda x: layer(x)


class Functional(Model):
    def middle(self, x):
        return F.linear(x, self.b.weight, self.b.bias)


class Joined(Model):
    def middle(self, x):
        return F.linear(x, torch.cat([self.b.weight[:4], self.a.weight[4:]]))


class Transposed(Model):
    def middle(self, x):
        return x @ self.b.weight.T


class Standardised(Model):
    def middle(self, x):
        weight = self.b.weight
        return F.linear(x, weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-3))


class Metadata(Model):
    def middle(self, x):
        weight = self.b.weight
        if isinstance(weight, torch.Tensor) and x.dtype != weight.dtype:
            x = x.to(weight.dtype)
        assert (weight.shape, weight.numel(), weight.size(1), len(weight)) == ((8, 8), 64, 8, 8)
        assert (self.b.in_features, self.b.out_features) == (8, 8)
        return self.b(x.to(weight.device))


class AskedForItsClass(Model):
    def forward(self, x):
        for layer in self.children():
            x = layer(x).tanh() if isinstance(layer, nn.Linear) else layer(x)
        return x


class Keyword(Model):
    def middle(self, x):
        return self.b(input=x)


class OwnForward(Model):
    def prepare(self):
        layer = self.b
        layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)


class Hooked(Model):
    def prepare(self):
        self.b.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
        self.b.register_forward_hook(lambda _, inputs, output: output * 2)


class Shared(Model):
    def prepare(self):
        self.twice = nn.Sequential(self.b, nn.Tanh(), self.b)

    def middle(self, x):
        return self.twice(x) + self.b(x)


class Checkpointed(Model):
    def middle(self, x):
        return checkpoint(self.b, x, use_reentrant=False)


class Product(torch.autograd.Function):
    """Sees no `__torch_function__`."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, *grads):
        x, weight = ctx.saved_tensors
        return grads[0] @ weight.T, x.T @ grads[0]


class OwnFunction(Model):
    def middle(self, x):
        return Product.apply(Product.apply(x, self.b.weight), self.a.weight.t())


class WeightPenalty(Model):
    def loss(self, x, y):
        return (
            super().loss(x, y)
            + self.b.weight.square().sum()
            + (self.a.weight @ self.c.weight).std()
        )


class GradientPenalty(Model):
    def middle(self, x):
        return self.b(x.tanh())

    def loss(self, x, y):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
        return super().loss(x, y) + 3 * slope.square().sum(1).mean()


class CurvaturePenalty(GradientPenalty):
    def loss(self, x, y):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self(x).square().sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return super().loss(x, y) + curve.square().mean()


class PenaltyThroughConvolutions(GradientPenalty):
    def prepare(self):
        self.a, self.b = nn.Conv2d(2, 4, 2, padding=1), nn.Conv2d(4, 4, 2, groups=2)
        self.c = nn.Linear(16, 8)

    def forward(self, x):
        return self.c(self.b(self.a(x.view(-1, 2, 2, 2)).tanh()).tanh().flatten(1))


HABITS = [
    *(PlainList, Dictionary, Partial, BoundMethod, Closure, Functional, Joined, Transposed),
    *(Standardised, Metadata, AskedForItsClass, Keyword, OwnForward, Hooked, Shared),
    *(
        Checkpointed,
        OwnFunction,
        WeightPenalty,
        GradientPenalty,
        CurvaturePenalty,
        PenaltyThroughConvolutions,
    ),
]


def train(make, storage, dtype=torch.float64):
    torch.manual_seed(0)
    model = make().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        isoflop.RigL(update_every=2, end_fraction=1.0),
        isoflop.plain_plan(model, 0.6, dense_ends=False),
        total_steps=STEPS,
        storage=storage,
    )
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(2, 16, 8, generator=generator, dtype=dtype)
        optimizer.zero_grad()
        model.loss(x, y).backward()
        optimizer.step()
    return model, sparsifier


@pytest.mark.parametrize("make", HABITS)
# In double precision without the compiled kernels, in single precision with them.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compressed_storage_trains_like_masked_storage(make, dtype):
    masked, compressed = (train(make, storage, dtype) for storage in ("masked", "compressed"))
    assert sum(isinstance(m, SparseLayer) for m in compressed[0].modules()) == 3
    assert sum(sum(entry["new"].values()) for entry in compressed[1].history) > 0
    assert compressed[1].history == masked[1].history
    for name, mask in masked[1].masks.items():
        assert torch.equal(mask, compressed[1].masks[name])
    x = torch.randn(4, 8, dtype=dtype)
    expected = masked[0](x)
    torch.testing.assert_close(compressed[0](x), expected)
    torch.testing.assert_close(densify(compressed[0])(x), expected)


@pytest.mark.parametrize("make", [PlainList, Dictionary, Shared])
def test_copies_and_pickles_are_their_own(make, monkeypatch):
    model, _ = train(make, "compressed")
    x = torch.randn(4, 8, dtype=torch.float64)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
        with torch.no_grad():
            other.b.values.zero_()
        assert not torch.equal(other(x), expected)
    assert torch.equal(model(x), expected)


def test_a_layer_that_is_the_whole_model_can_be_compressed():
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        "set",
        isoflop.plain_plan(model, 0.5, dense_ends=False),
        total_steps=5,
        storage="compressed",
    )
    assert isinstance(model, SparseLayer)
    model(torch.ones(2, 8)).sum().backward()
    before = model.dense_weight()
    optimizer.step()
    assert int((model.dense_weight() != before).sum()) == sparsifier.nnz["weight"] == 16


def test_whatever_holds_the_parameter_goes_on_with_the_values():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    isoflop.sparsify(
        model,
        optimizer,
        "set",
        isoflop.plain_plan(model, 0.5, dense_ends=False),
        total_steps=5,
        storage="compressed",
    )
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    model(torch.ones(2, 8)).sum().backward()
    nn.utils.clip_grad_norm_(parameters, 1e-3)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert float(torch.cat([g.flatten() for g in grads]).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_layers_made_dense_are_not_trained_by_the_sparsifier():
    model, sparsifier = train(Model, "compressed")
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    assert type(densify_(model).b) is nn.Linear
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())
    model.loss(*torch.randn(2, 16, 8, dtype=torch.float64)).backward()
    with pytest.raises(isoflop.errors.IsoflopError, match=r"made dense .* `sparsifier.remove\(\)`"):
        sparsifier._optimizer.step()


def test_the_fast_path_of_transformers_is_left():
    """In evaluation PyTorch's encoder would read the weights of its layers for a fused kernel."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    isoflop.sparsify(
        model,
        optimizer,
        "set",
        isoflop.plain_plan(model, 0.5, dense_ends=False),
        total_steps=5,
        storage="compressed",
    )
    x = torch.randn(3, 5, 16)
    padding = torch.arange(5).expand(3, 5) > 2
    expected = model(x, src_key_padding_mask=padding)[:, :3]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x, src_key_padding_mask=padding)[:, :3], expected)
