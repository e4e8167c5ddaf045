"""Frozen parameters: bit for bit where no size changes, resampled or refused where one does."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isoflop
from isoflop.transforms import TRANSFORMS
from isoflop.transforms.buffers import resized

KEEPING = ("parallel", "factorized", "doped")  # transforms that change no width


def sinusoids(length: int, width: int) -> torch.Tensor:
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)


def grid(width: int, rows: int, columns: int, token: bool) -> torch.Tensor:
    """Sinusoids of rows and columns, as in MAE: sines, then cosines, zeros for the class token."""

    def side(positions: torch.Tensor) -> torch.Tensor:
        frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.double) / (width // 4))
        angles = positions[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    table = torch.cat([side(x.flatten()), side(y.flatten())], 1).float()
    return torch.cat([torch.zeros(int(token), width), table])


class Net(nn.Module):
    """Tokens of 8 channels between Linears, with `middle` before the second."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(8, 32), middle
        self.second, self.third, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.second(self.middle(self.first(x))))
        return self.last(F.relu(self.third(x)))


class Table(nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, x):
        return x + self.table


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(torch.randn(5, 32))

    def forward(self, x):
        return x + self.words(torch.arange(5))


class Attention(nn.MultiheadAttention):
    def forward(self, x):  # pyright: ignore
        return super().forward(x, x, x)[0]


class Resetting(nn.Module):
    """A module that resets its child, and a frozen parameter among trained ones."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(32, 32).requires_grad_(False)
        self.fixed = nn.Parameter(torch.randn(3), requires_grad=False)
        self.scale = nn.Parameter(torch.randn(3))

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x):
        return self.child(x) * self.scale.sum() + self.fixed.sum()


def trained_norm() -> nn.Module:
    norm = nn.BatchNorm1d(5)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.uniform_()
    return norm


MIDDLES = {
    "table": lambda: Table(sinusoids(5, 32)[None]),
    "random table": lambda: Table(torch.randn(5, 32)),
    "layer": lambda: nn.Linear(32, 32),
    "backbone": lambda: nn.Sequential(nn.Linear(32, 32), trained_norm(), nn.Linear(32, 32)),
    "norm": lambda: nn.Sequential(trained_norm(), nn.BatchNorm1d(5, affine=False)),
    "attention": lambda: Attention(32, 4, batch_first=True),
    "plain attention": lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True),
    "embedding": Words,
    "resetting": Resetting,
    "integers": lambda: Table(torch.arange(5 * 32).reshape(5, 32)),
}


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("middle", MIDDLES)
def test_frozen_parameters_and_statistics_stay_bit_for_bit(name, middle):
    dense = Net(MIDDLES[middle]())
    kind = TRANSFORMS.get(name)
    if middle != "resetting":
        dense.middle.requires_grad_(False)
    dense.third.bias.requires_grad_(False)
    model, plan = isoflop.transform(dense, kind(0.5), example_inputs=(2, 5, 8))
    new = model.state_dict()
    frozen = [key for key, value in dense.named_parameters() if not value.requires_grad]
    assert frozen
    if middle != "resetting":
        frozen += [f"middle.{key}" for key in dense.middle.state_dict()]
    for key in frozen:
        assert torch.equal(new[key], dense.state_dict()[key]), key
    assert not any(p.requires_grad for key, p in model.named_parameters() if key in frozen)
    assert {layer.source for layer in plan.sparse_layers} == {"second", "third"}
    # The plan is the same without values.
    with torch.device("meta"):
        meta = Net(MIDDLES[middle]()) if middle not in ("norm", "backbone") else None
    if meta is not None:
        for (_, p), (_, q) in zip(meta.named_parameters(), dense.named_parameters(), strict=True):
            p.requires_grad_(q.requires_grad)
        assert isoflop.transform(meta, kind(0.5), example_inputs=(2, 5, 8))[1] == plan


@pytest.mark.parametrize("name", ["wide", "low_rank"])
@pytest.mark.parametrize("middle", ["random table", "layer", "attention", "embedding"])
def test_what_is_frozen_at_a_width_of_unknown_content_is_refused_by_name(name, middle):
    dense = Net(MIDDLES[middle]())
    dense.middle.requires_grad_(False)
    first = next(key for key, _ in dense.middle.named_parameters())
    with pytest.raises(
        isoflop.WideningError, match=rf"frozen parameter 'middle\.{first}' .*requires_grad_"
    ):
        isoflop.transform(dense, TRANSFORMS.get(name)(0.75), example_inputs=(2, 5, 8))


@pytest.mark.parametrize("name", ["wide", "low_rank"])
def test_frozen_sinusoids_and_constants_get_wider(name):
    for table, wide in (
        (sinusoids(5, 32)[None], sinusoids(5, 64)[None]),
        (torch.full((32,), 1e-5), torch.full((64,), 1e-5)),
        (torch.tensor(0.5), torch.tensor(0.5)),
    ):
        config = TRANSFORMS.get(name)(0.75, dense_ends=False)
        model: Any
        model, _ = isoflop.transform(Net(Table(table)), config, example_inputs=(2, 5, 8))
        torch.testing.assert_close(model.middle.table.detach(), wide, atol=1e-5, rtol=1e-5)
        assert not model.middle.table.requires_grad


def test_a_frozen_filter_that_all_channels_share_stays_one():
    blur: Any = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False).requires_grad_(False)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    blur.weight.copy_(kernel.expand_as(blur.weight))
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3), blur, nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )
    for config, channels in ((isoflop.SparseWide(0.75), 32), (isoflop.SparseParallel(0.75), 16)):
        model: Any
        model, plan = isoflop.transform(
            dense, config, example_inputs=(1, 3, 12, 12), scope="layers"
        )
        assert torch.equal(model[1].weight, kernel.expand(channels, 1, 3, 3))
        assert {layer.source for layer in plan.sparse_layers} == {"3"}


def test_a_model_with_everything_frozen_is_told_so():
    dense = Net(nn.Identity()).requires_grad_(False)
    with pytest.raises(isoflop.NoTransformableLayersError, match="are frozen"):
        isoflop.transform(dense, isoflop.SparseParallel(0.5), example_inputs=(2, 5, 8))


def test_frozen_weights_are_not_masked_without_a_transform_either():
    dense = Net(nn.Linear(32, 32).requires_grad_(False))
    before = dense.middle.get_parameter("weight").clone()
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1)
    with pytest.raises(isoflop.OptimizerError, match=r"'middle\.weight'"):
        isoflop.sparsify(dense, optimizer, "rigl", 0.5, total_steps=10)
    assert torch.equal(dense.middle.get_parameter("weight"), before)


@pytest.mark.parametrize("held", [lambda t: t, lambda t: [{"a": t}]])
def test_plain_tensors_are_treated_as_buffers_are(held):
    class Plain(nn.Module):
        def __init__(self, table: torch.Tensor) -> None:
            super().__init__()
            self.table = held(table)

        def forward(self, x):
            return x * (self.table if isinstance(self.table, torch.Tensor) else self.table[0]["a"])

    config = isoflop.SparseWide(0.75, dense_ends=False)
    model: Any
    model, _ = isoflop.transform(
        Net(Plain(torch.full((32,), 0.5))), config, example_inputs=(2, 5, 8)
    )
    table = model.middle.table
    assert torch.equal(
        table if isinstance(table, torch.Tensor) else table[0]["a"],
        torch.full((64,), 0.5),
    )
    with pytest.raises(isoflop.WideningError, match=r"plain tensor .middle\.table"):
        isoflop.transform(Net(Plain(torch.randn(32))), config, example_inputs=(2, 5, 8))


@pytest.mark.parametrize("token", [False, True])
def test_sinusoids_of_a_grid_get_wider(token):
    new = resized(grid(32, 7, 5, token)[None], (1, 35 + token, 64))
    assert new is not None
    torch.testing.assert_close(new[0], grid(64, 7, 5, token), atol=1e-5, rtol=0)
    assert math.isfinite(new.sum().item())
    assert resized(grid(32, 7, 5, token)[None], (1, 35 + token, 66)) is None
