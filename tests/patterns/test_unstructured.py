import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.patterns import Unstructured

pattern = Unstructured()


@st.composite
def scored_masks(draw):
    """Draw two lists of scores with many ties, a mask, and how many of its positions to renew."""
    n = draw(st.integers(1, 24))
    values = st.sampled_from([-torch.inf, -1.0, -0.0, 0.0, 0.5, 1.0, torch.inf])
    scores = st.lists(values, min_size=n, max_size=n)
    mask = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    count = draw(st.integers(0, sum(mask)))
    return torch.tensor(draw(scores)), torch.tensor(draw(scores)), torch.tensor(mask), count


def reference_top(scores, count, allowed):
    """Return the same in plain Python."""
    order = sorted((i for i in range(len(scores)) if allowed[i]), key=lambda i: (-scores[i], i))
    return [i in order[:count] for i in range(len(scores))]


@given(scored_masks())
def test_top_is_exact_and_prefers_low_indices_on_ties(case):
    scores, _, allowed, count = case
    expected = reference_top(scores.tolist(), count, allowed.tolist())
    assert pattern.top(scores, count, allowed).tolist() == expected
    everywhere = [True] * len(scores)
    assert pattern.top(scores, count).tolist() == reference_top(scores.tolist(), count, everywhere)


@given(scored_masks())
def test_rewire_keeps_the_count_and_the_best_and_grows_the_best_of_the_rest(case):
    drop, grow, mask, count = case
    new = pattern.drop_and_grow(mask, drop, grow, count)
    survivors = reference_top(drop.tolist(), int(mask.sum()) - count, mask.tolist())
    others = [not s for s in survivors]
    grown = reference_top(grow.tolist(), count, others)
    assert new.tolist() == [s or g for s, g in zip(survivors, grown, strict=True)]
    assert new.sum() == mask.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("levels", [2, 50, 10**6])
def test_top_agrees_with_a_stable_sort(dtype, levels):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(levels, (100, 300), generator=generator).to(dtype)
    allowed = torch.rand(100, 300, generator=generator) < 0.5
    order = scores.flatten().argsort(descending=True, stable=True)
    for count in (1, 17, 5_000, 14_000):
        expected = torch.zeros(30_000, dtype=torch.bool)
        expected[order[allowed.flatten()[order]][:count]] = True
        assert torch.equal(pattern.top(scores, count, allowed).flatten(), expected)


def test_rewire_is_the_rigl_example():
    weight = torch.tensor([0.1, -0.2, 0.3, 0.4, 0, 0, 0, 0])
    grad = torch.tensor([9.0, 0, 0, 0, 1, -5, 2, 0])
    new = pattern.drop_and_grow(weight != 0, weight.abs(), grad.abs(), 2)
    assert new.nonzero().flatten().tolist() == [0, 2, 3, 5]


def test_inactive_positions_never_survive():
    # Active weights that have not moved from zero tie with the masked ones.
    mask = torch.tensor([False, False, True, True])
    new = pattern.drop_and_grow(mask, torch.zeros(4), torch.tensor([0.0, 1, 0, 0]), 1)
    assert new.tolist() == [False, True, True, False]


def test_random_masks_are_uniform():
    generator = torch.Generator().manual_seed(0)
    hits = torch.stack([pattern.random((10,), 3, generator) for _ in range(2000)]).float().mean(0)
    assert hits.sub(0.3).abs().max() < 0.05
    assert pattern.random((4,), 0, generator).sum() == 0
    assert pattern.random((4,), 4, generator).sum() == 4
