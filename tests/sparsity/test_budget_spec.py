import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isoflop.errors import BudgetError
from isoflop.methods import GMP
from isoflop.patterns import Pattern, Unstructured
from isoflop.sparsity import plain_plan
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.budget_spec import BudgetSpec
from isoflop.sparsity.targets import MaskedTarget


@dataclass(frozen=True)
class Rows(Pattern):
    """Whole rows of a matrix, every second one only if `half`."""

    half: bool = False

    def count(self, shape, nnz):
        if self.half:
            return math.prod(shape) // 2
        rows = min(shape[0], max(1, math.ceil(nnz / shape[1] - 0.5)))
        return rows * shape[1]

    def top(self, scores, count, allowed=None):
        order = scores.sum(1).argsort(descending=True, stable=True)
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        mask[order[: int(count) // scores.shape[1]]] = True
        return mask

    def random(self, shape, count, generator=None):
        return self.top(torch.rand(shape, generator=generator), count)

    def drop_and_grow(self, mask, drop_scores, grow_scores, drop, grow=None):
        raise NotImplementedError

    def check(self, mask):
        return bool((mask == mask[:, :1]).all())


def layout_of(shapes, prices, pattern=None):
    modules = [nn.Linear(b, a, bias=False) for a, b in shapes]
    targets = [MaskedTarget(f"{i}.weight", 1, m, "weight") for i, m in enumerate(modules)]
    return BudgetSpec(tuple(targets), tuple(prices), pattern or Unstructured())


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9)), min_size=1),
    st.integers(0, 10**6),
    st.floats(0, 1),
)
def test_the_highest_scores_are_bought_while_the_cost_lasts(layers, seed, part):
    budget_spec = layout_of([layer[:2] for layer in layers], [layer[2] for layer in layers])
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(s, generator=generator) for s in budget_spec.shapes]
    least = budget_spec.cost([shape[0] for shape in budget_spec.shapes])
    most = budget_spec.cost(budget_spec.sizes)
    cost = least + round(part * (most - least))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts, kept = budget_spec.ranked(scores, cost, min_per_output=1)
    assert abs(budget_spec.cost(counts) - cost) <= max(budget_spec.prices)
    for mask, count in zip(budget_spec.select(kept, counts), counts, strict=True):
        assert int(mask.sum()) == count
        assert mask.any(dim=1).all()
    if len({*budget_spec.prices}) == 1:
        assert 2 * abs(budget_spec.cost(counts) - cost) <= budget_spec.prices[0]


def test_ties_go_to_the_earlier_layer_and_the_lower_index():
    budget_spec = layout_of([(2, 2), (2, 2)], [1, 1])
    scores = [torch.ones(2, 2), torch.ones(2, 2)]
    counts, kept = budget_spec.ranked(scores, 5, min_per_output=0, by_weight=True)
    assert counts == [4, 1]
    assert budget_spec.select(kept, counts)[1].tolist() == [[True, False], [False, False]]


def test_counts_are_those_that_the_pattern_can_have():
    budget_spec = layout_of([(4, 3), (5, 2)], [1, 1], Rows())
    assert budget_spec.feasible([5, 5]) == [6, 4]
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = sparsify(
        model,
        optimizer,
        "static",
        plain_plan(model, 0.5, example_inputs=(1, 3), dense_ends=False),
        pattern=Rows(),
        total_steps=3,
    )
    assert sparsifier.nnz == {"0.weight": 6, "1.weight": 8}
    assert sparsifier.plan is not None
    assert sparsifier.plan.macs == 14  # the truth, not the 16 that were asked for
    for name, mask in sparsifier.masks.items():
        assert int(mask.sum()) == sparsifier.nnz[name]


def test_patterns_that_cannot_become_sparser_refuse_a_ramp():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BudgetError, match="pattern='unstructured'"):
        sparsify(
            model,
            optimizer,
            GMP(update_every=1),
            plain_plan(model, 0.5, dense_ends=False),
            pattern=Rows(half=True),
            total_steps=10,
        )


@pytest.mark.parametrize(
    ("module", "outputs"),
    [
        (nn.Linear(3, 5), 5),
        (nn.Conv2d(4, 6, 3, groups=2), 6),
        (nn.ConvTranspose2d(4, 6, 3), 6),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), 6),
    ],
)
def test_rows_are_outputs(module, outputs):
    target = MaskedTarget("weight", 1, module, "weight")
    numel = module.weight.numel()
    rows = target.by_output(torch.arange(numel).view(module.weight.shape))
    assert rows.shape == (outputs, numel // outputs)
    assert torch.equal(rows, rows.sort(dim=1).values)
    owners = torch.empty(numel, dtype=torch.int64)
    owners[rows] = torch.arange(outputs)[:, None]
    # Zeroing a row zeroes that output, and no other.
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.weight.view(-1)[owners == 1] = 0
        module.bias.zero_()
        x = torch.ones(1, 3) if isinstance(module, nn.Linear) else torch.ones(1, 4, 5, 5)
        x = x[:, :, 0] if isinstance(module, nn.ConvTranspose1d) else x
        out = module(x)[0].flatten(1) if x.ndim > 2 else module(x)[0][:, None]
    assert [bool(row.any()) for row in out] == [i != 1 for i in range(outputs)]
