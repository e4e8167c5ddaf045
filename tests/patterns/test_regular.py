"""The batched solver against a linear program, enumeration and its promises."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.patterns import regular
from isoflop.patterns.linear_program import best_regular_reference
from isoflop.patterns.regular import best_regular


def gaussian(tiles, size, seed=0):
    return torch.randn(tiles, size, size, generator=torch.Generator().manual_seed(seed)).abs()


def every_mask(size, n):
    """Return all masks with row and column sums n."""
    rows = [
        torch.tensor([j in chosen for j in range(size)])
        for chosen in itertools.combinations(range(size), n)
    ]
    masks = (torch.stack(rows) for rows in itertools.product(rows, repeat=size))
    return torch.stack([mask for mask in masks if (mask.sum(0) == n).all()])


def assert_regular(masks, n):
    assert (masks.sum(1) == n).all()
    assert (masks.sum(2) == n).all()


def test_the_worked_example():
    # Magnitudes of a 4 × 4 tile. Keeping the largest first leaves 77, the optimum 90.
    scores = torch.tensor([[6.0, 11, 7, 1], [8, 2, 14, 3], [16, 15, 5, 12], [4, 13, 10, 9]])
    for solve in (best_regular, best_regular_reference):
        mask = solve(scores[None], 2)[0]
        assert_regular(mask[None], 2)
        assert scores[mask].sum() == 90


def test_there_are_90_masks_of_4_by_4():
    masks = every_mask(4, 2)
    assert len(masks) == 90
    # Each is the optimum of its own scores.
    assert torch.equal(best_regular(masks.float(), 2), masks)
    scores = gaussian(200, 4)
    best = (masks.flatten(1).float() @ scores.flatten(1).T).max(0).values
    torch.testing.assert_close((scores * best_regular(scores, 2)).sum((1, 2)), best)


@pytest.mark.parametrize(("n", "size"), [(1, 8), (2, 8), (4, 8), (7, 8), (2, 4), (1, 2), (5, 11)])
def test_it_finds_the_optimum_of_gaussian_tiles(n, size):
    scores = gaussian(40, size)
    mask = best_regular(scores, n)
    assert_regular(mask, n)
    reference = best_regular_reference(scores, n)
    assert (scores * mask).sum() / (scores * reference).sum() >= 0.99
    # More than was asked for: it is the optimum, which no two random tiles share.
    assert torch.equal(mask, reference)


@st.composite
def tiles_with_ties(draw):
    size = draw(st.integers(2, 5))
    values = st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0])
    scores = draw(st.lists(values, min_size=size**2, max_size=size**2))
    return torch.tensor(scores).view(1, size, size), draw(st.integers(1, size - 1))


@settings(max_examples=60, deadline=None)
@given(tiles_with_ties(), st.integers(0, 2**16))
def test_ties_and_fixed_positions_leave_it_optimal(case, seed):
    scores, n = case
    size = scores.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    some = best_regular(torch.rand(1, size, size, generator=generator), n)
    fixed = some & (torch.rand(1, size, size, generator=generator) < 0.5)
    mask = best_regular(scores, n, fixed=fixed)
    assert_regular(mask, n)
    assert not (fixed & ~mask).any()
    reference = best_regular_reference(scores, n, fixed)
    assert scores[mask].sum() == scores[reference].sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.data())
def test_infinities_and_forbidden_positions_come_first(size, data):
    n = data.draw(st.integers(1, size - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    scores = torch.randn(1, size, size, generator=generator)
    kind = torch.randint(4, (1, size, size), generator=generator)
    allowed = torch.rand(1, size, size, generator=generator) < 0.7
    scores = scores.masked_fill(kind == 0, torch.inf).masked_fill(kind == 1, -torch.inf)
    mask = best_regular(scores, n, allowed=allowed)
    assert_regular(mask, n)
    # The same by a linear program with weights that are large enough for this size.
    order = scores.clamp(-1e3, 1e3).masked_fill(~allowed, -1e6)
    reference = best_regular_reference(order, n)
    assert (mask & ~allowed).sum() == (reference & ~allowed).sum()
    balance = (order == 1e3).int() - (order == -1e3).int()
    assert (balance * mask).sum() == (balance * reference).sum()
    torch.testing.assert_close(order[mask].sum(), order[reference].sum(), rtol=0, atol=1.0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_the_scores_does_not_matter(scale):
    scores = gaussian(20, 8)
    assert torch.equal(best_regular(scores * scale, 4), best_regular_reference(scores, 4))


def test_tiles_are_solved_by_themselves(monkeypatch):
    scores = gaussian(30, 8)
    scores[7] = 0
    together = best_regular(scores, 2)
    monkeypatch.setattr(regular, "CHUNK", 8 * 64)
    assert torch.equal(best_regular(scores, 2), together)
    alone = torch.cat([best_regular(tile[None], 2) for tile in scores])
    assert torch.equal(alone, together)
    assert best_regular(scores[:0], 2).shape == (0, 8, 8)
