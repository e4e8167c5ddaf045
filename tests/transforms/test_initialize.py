from typing import Any

import pytest
import torch
from torch import nn

import isoflop


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
