"""Models that take ways of their own: gradients, compiled parts, masks that are looked into."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import parametrizations, prune

import isoflop
from isoflop.errors import IsoflopError
from isoflop.flops.trace import profile

TRANSFORMS = [isoflop.SparseWide, isoflop.SparseParallel, isoflop.SparseFactorized]


def mlp(outputs=1):
    return nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs)
    )


class Forces(nn.Module):
    """An energy and its gradient, as potentials in chemistry have it."""

    def __init__(self, way):
        super().__init__()
        self.net, self.way = mlp(), way

    def forward(self, x):
        if self.way == "grad":
            x = x.requires_grad_()
            energy = self.net(x).sum()
            return energy, torch.autograd.grad(energy, x)[0]
        if self.way == "enabled":
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                energy = self.net(x).sum()
                return energy.detach(), torch.autograd.grad(energy, x)[0]
        return torch.func.grad(lambda y: self.net(y).sum())(x)


@pytest.mark.parametrize("way", ["grad", "enabled", "func"])
def test_gradients_in_a_forward_pass_are_counted(way):
    model = Forces(way)
    assert profile(model, (5, 8)).macs == 2 * 5 * (128 + 256 + 16)
    for transform in TRANSFORMS[:2]:
        new, plan = isoflop.transform(
            model, transform(0.5, dense_ends=False), example_inputs=(5, 8)
        )
        assert plan.macs == pytest.approx(plan.dense_macs, rel=0.01)
        new(torch.zeros(5, 8))


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old weight_norm", "pruned"])
def test_weights_that_hooks_and_parametrisations_make(kind):
    layer = nn.Linear(8, 8)
    if kind == "pruned":
        prune.l1_unstructured(layer, "weight", 0.5)
    elif kind == "old weight_norm":
        with warnings.catch_warnings(action="ignore"):
            layer = nn.utils.weight_norm(layer)
    else:
        layer = getattr(parametrizations, kind)(layer)
    layer(torch.zeros(5, 8))
    table = profile(nn.Sequential(layer, nn.Linear(8, 2)), (5, 8))
    of_layer = sum(row.macs for row in table.rows if row.operation == "addmm") - 5 * 16
    assert of_layer == 5 * 64


class Masked(nn.Module):
    """PyTorch's transformers with masks that they look into."""

    def __init__(self, kind):
        super().__init__()
        self.stem, self.head, self.kind = nn.Linear(8, 16), nn.Linear(16, 4), kind
        options = {"dim_feedforward": 32, "batch_first": True}
        if kind == "whole":
            self.net = nn.Transformer(16, 2, 1, 1, **options)
        elif kind == "encoder":
            self.net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, **options), 1)
        else:
            self.net = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, **options), 1)

    def forward(self, x, mask=None):
        x = self.stem(x)
        if mask is None:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        if self.kind == "encoder":
            return self.head(self.net(x, mask=mask))
        return self.head(self.net(x, x, tgt_mask=mask))


@pytest.mark.parametrize("kind", ["whole", "encoder", "decoder"])
def test_masks_of_transformers_are_not_looked_into(kind):
    model = Masked(kind)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    macs = profile(model, (2, 5, 8)).macs
    assert profile(model, (torch.zeros(2, 5, 8), mask)).macs == macs
    for transform in TRANSFORMS[kind == "whole" :]:
        isoflop.transform(model, transform(0.5), example_inputs=(2, 5, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    isoflop.sparsify(
        model,
        optimizer,
        isoflop.RigL(),
        isoflop.plain_plan(model, 0.5, example_inputs=(2, 5, 8)),
        total_steps=10,
    )


def test_compiled_functions_are_looked_into():
    class Calling(nn.Linear):
        def forward(self, x):
            return product(x, self.weight)

    product = torch.compile(lambda x, weight: x @ weight, backend="eager")
    assert profile(Calling(8, 8), (5, 8)).by_parameter() == {"weight": 5 * 64}


def test_flexible_attention_is_counted():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            heads = (y[None, None] for y in (self.q(x), self.k(x), x))
            return flex_attention(*heads)

    assert profile(Attention(), (5, 8)).macs == 2 * 5 * 64 + 2 * 5 * 5 * 8


def test_programs_are_refused():
    with warnings.catch_warnings(action="ignore"):
        program: Any = torch.jit.trace(nn.Linear(8, 8), torch.zeros(1, 8))
    with pytest.raises(IsoflopError, match="'0' of Sequential is a TorchScript program"):
        profile(nn.Sequential(program), (5, 8))


def test_names_and_functions_are_no_models():
    with pytest.raises(IsoflopError, match=r"not the name 'timm:resnet18'.*build_model"):
        profile("timm:resnet18", (1, 3, 224, 224))  # type: ignore[arg-type]
    with pytest.raises(IsoflopError, match=r"must be a torch.nn.Module, not function"):
        profile(lambda x: x, (1, 3))  # type: ignore[arg-type]


def test_shapes_of_several_inputs():
    class Two(nn.Module):
        def forward(self, x, y):
            return x @ y.transpose(1, 2)

    assert profile(Two(), ((4, 12, 8), (4, 9, 8))).macs == 4 * 12 * 9 * 8
    assert profile(Two(), {"x": (4, 12, 8), "y": (4, 9, 8)}).macs == 4 * 12 * 9 * 8
