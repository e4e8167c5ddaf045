from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop.transforms import TRANSFORMS


class Rotary(nn.Module):
    """A table of the size of a width between two layers."""

    def __init__(self, table) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(4, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        self.register_buffer("table", table)

    def forward(self, x):
        return self.head(self.middle(self.first(x) * self.table))


def wide_table(table) -> torch.Tensor:
    config = isoflop.SparseWide(0.75, dense_ends=False)
    model: Any
    model, _ = isoflop.transform(Rotary(table), config, example_inputs=(1, 4))
    return model.table


def test_frequencies_of_rotary_embeddings_run_over_the_same_range_in_more_steps():
    table = wide_table(10000.0 ** (-torch.arange(8) / 8))
    torch.testing.assert_close(table, 10000.0 ** (-torch.arange(16) / 16))


def test_a_constant_table_stays_constant():
    assert torch.equal(wide_table(torch.full((8,), 0.5)), torch.full((16,), 0.5))


@pytest.mark.parametrize(
    "table", [torch.arange(8.0), 1.0 + torch.arange(8.0), torch.arange(8) % 3.0]
)
def test_a_table_of_unknown_content_is_refused(table):
    with pytest.raises(isoflop.WideningError, match="'table' has the size of a width"):
        wide_table(table)


def test_what_modules_keep_of_their_old_weights_is_forgotten():
    class Cached(nn.Linear):
        """Keeps a product of its weight in evaluation mode, as LeViT its attention biases."""

        def __init__(self) -> None:
            super().__init__(8, 8)
            self.cache: dict[str, torch.Tensor] = {}

        def train(self, mode: bool = True) -> "Cached":
            if mode:
                self.cache = {}
            return super().train(mode)

        def forward(self, x):
            if not self.training and "double" not in self.cache:
                self.cache["double"] = 2 * self.weight.detach()
            return nn.functional.linear(x, self.cache.get("double", 2 * self.weight), self.bias)

    model = nn.Sequential(nn.Linear(4, 8), Cached(), nn.Linear(8, 8), nn.Linear(8, 2)).eval()
    model(torch.zeros(1, 4))
    new: Any
    new, _ = isoflop.transform(
        model, isoflop.SparseWide(0.5, dense_ends=False), example_inputs=(1, 4)
    )
    assert not new[1].cache
    assert not new.training
    new(torch.zeros(1, 4))
    assert torch.equal(new[1].cache["double"], 2 * new[1].weight)


class Language(nn.Module):
    """Embedding and head share their weight; all weights are as small as those of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64, padding_idx=0)
        self.inner, self.outer = nn.Linear(64, 256), nn.Linear(256, 64)
        self.positions = nn.Embedding(10, 64)
        self.head = nn.Linear(64, 50, bias=False)
        for module in self.children():
            nn.init.normal_(module.weight, std=0.02)  # pyright: ignore
        nn.init.zeros_(self.embedding.weight[0].detach())
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(x + self.outer(self.inner(x).relu()))


def test_weights_are_as_small_as_those_of_the_dense_model_for_their_fan():
    tokens = torch.zeros(1, 10, dtype=torch.long)
    model: Any
    paper = isoflop.SparseWide(0.75, init="dense_fan")
    for config, density in ((isoflop.SparseWide(0.75), 0.25), (paper, 1.0)):
        model, plan = isoflop.transform(Language(), config, example_inputs=tokens, scope="layers")
        assert [layer.nnz / layer.numel for layer in plan.layers][:2] == [0.25, 0.25]
        for layer in (model.inner, model.outer):
            assert layer.weight.std().item() == pytest.approx(0.02 / (2 * density) ** 0.5, rel=0.05)
        assert model.positions.weight.std().item() == pytest.approx(0.02, rel=0.1)
        # A dense layer of twice the inputs. It is not drawn again for its second owner.
        assert model.head.weight is model.embedding.weight
        assert model.head.weight.std().item() == pytest.approx(0.02 / 2**0.5, rel=0.1)


def test_the_row_of_the_padding_stays_zero():
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 64, padding_idx=0)
            self.hidden, self.head = nn.Linear(64, 64), nn.Linear(64, 3)
            self.embedding.weight.data *= 0.1

        def forward(self, tokens):
            return self.head(self.hidden(self.embedding(tokens).mean(1)).relu())

    tokens = torch.zeros(1, 10, dtype=torch.long)
    model: Any
    model, _ = isoflop.transform(Classes(), isoflop.SparseWide(0.5), example_inputs=tokens)
    assert not model.embedding.weight[0].any()
    assert model.embedding.weight[1:].std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("name", ["parallel", "factorized", "doped", "low_rank"])
def test_bias_of_one_output_is_that_of_the_dense_model(name, monkeypatch):
    # Memory that nobody has filled holds anything.
    empty_like = torch.empty_like
    monkeypatch.setattr(
        torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(torch.nan)
    )
    dense = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))
    config = TRANSFORMS.get(name)(0.5, dense_ends=False)
    model, _ = isoflop.transform(dense, config, example_inputs=(4, 12))
    bias = model.get_parameter("2.bias")
    assert bias.item() == dense.get_parameter("2.bias").item()
