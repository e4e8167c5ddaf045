"""Which names are those of widths, and which of numbers of parts."""

from typing import Any

import pytest
from torch import nn

import isoflop
from isoflop.widths.names import is_count_name, is_width_name


@pytest.mark.parametrize(
    "name", ["embed_dim", "in_channels", "out_chs", "d_model", "hidden_size", "dim_feedforward"]
)
def test_widths(name):
    assert is_width_name(name)


@pytest.mark.parametrize(
    "name", ["num_heads", "n_layer", "patch_size", "window_size_2", "vocab_size", "max_length"]
)
def test_counts(name):
    assert is_count_name(name)
    assert not is_width_name(name)


@pytest.mark.parametrize("name", ["size", "inner", "k", "spatial"])
def test_a_name_that_tells_nothing(name):
    assert not is_width_name(name)
    assert not is_count_name(name)


class Reshapes(nn.Module):
    """Two heads of four channels; both attributes have values of widths."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.inner = nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)
        self.num_heads = 4
        self.head_dim = 2

    def forward(self, x):
        x = self.first(x).unflatten(-1, (self.num_heads, self.head_dim))
        return self.last(self.inner(x.flatten(-2)))


def test_of_two_factors_the_width_grows():
    transform = isoflop.SparseWide(sparsity=0.75, dense_ends=False)
    model: Any
    model, _ = isoflop.transform(Reshapes(), transform, example_inputs=(2, 6))
    assert (model.num_heads, model.head_dim, model.first.out_features) == (4, 4, 16)
