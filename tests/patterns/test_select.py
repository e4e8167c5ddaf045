import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.patterns.select import counts_within, highest_of_rows

VALUES = [0.0, -0.0, 1.0, 1.0000001, -1.0, 3e-39, 2.5, 1e30, -1e30, torch.inf, -torch.inf]


def by_sorting(scores, prices, cost):
    flat = torch.cat([score.flatten() for score in scores])
    order = flat.argsort(descending=True, stable=True).tolist()
    owners = [i for i, score in enumerate(scores) for _ in range(score.numel())]
    counts = [0] * len(scores)
    for position in order:
        cost -= prices[owners[position]]
        if cost < 0:
            break
        counts[owners[position]] += 1
    return counts


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(VALUES)), st.integers(0, 5)), min_size=1),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 60),
)
def test_counts_within_a_cost_are_those_of_a_stable_sort(layers, dtype, cost):
    scores = [torch.tensor(values, dtype=torch.float64).to(dtype) for values, _ in layers]
    prices = [price for _, price in layers]
    assert counts_within(scores, prices, cost) == by_sorting(scores, prices, cost)


@given(st.integers(0, 10**6), st.integers(0, 1200))
def test_counts_of_dense_values_of_mixed_types(seed, cost):
    generator = torch.Generator().manual_seed(seed)
    scores = [
        torch.randn(7, 20, generator=generator),
        torch.randn(150, generator=generator).bfloat16(),
        torch.randn(50, generator=generator, dtype=torch.float64),
    ]
    assert counts_within(scores, [3, 4, 1], cost) == by_sorting(scores, [3, 4, 1], cost)


@given(
    st.lists(st.lists(st.sampled_from(VALUES), min_size=4, max_size=4), min_size=1),
    st.integers(0, 6),
)
def test_highest_of_rows_breaks_ties_by_position(rows, count):
    scores = torch.tensor(rows)
    chosen = highest_of_rows(scores, count)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    assert torch.equal(chosen, torch.zeros_like(chosen).scatter(1, order, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_sorted(monkeypatch, dtype):
    def refuse(*args, **kwargs):
        raise AssertionError("sorted")

    for name in ("sort", "argsort", "msort"):
        monkeypatch.setattr(torch.Tensor, name, refuse, raising=False)
        monkeypatch.setattr(torch, name, refuse)
    scores = torch.arange(20, dtype=dtype).view(4, 5)
    assert counts_within([scores, scores + 10], [1, 1], 15) == [3, 12]
    assert highest_of_rows(scores, 2).sum() == 8
