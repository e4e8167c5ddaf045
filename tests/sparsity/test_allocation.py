import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import BudgetError, UnknownNameError
from isoflop.sparsity.allocation import ALLOCATIONS, er, erk, exact_counts, num_nonzero, uniform

CAPPED = [(16, 16, 1, 1), (64, 64, 3, 3), (256, 256, 3, 3)]
UNCAPPED = [(64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3)]

shape_lists = st.lists(
    st.tuples(*[st.integers(1, 40)] * 2, *[st.integers(1, 3)] * 2), min_size=1, max_size=6
)


def kept(shapes, densities):
    return sum(d * math.prod(s) for s, d in zip(shapes, densities, strict=True))


def test_erk_with_one_layer_capped():
    densities = erk(CAPPED, 0.2)
    assert densities == pytest.approx([1.0, 0.697631, 0.168551], abs=1e-6)
    raw = sum(CAPPED[2]) / math.prod(CAPPED[2])
    assert densities[2] / raw == pytest.approx(191.92147, abs=1e-5)


def test_er_with_one_layer_capped():
    assert er(CAPPED, 0.2) == pytest.approx([1.0, 0.678889, 0.169722], abs=1e-6)


def test_erk_without_cap():
    assert erk(UNCAPPED, 0.1) == pytest.approx([0.157912, 0.116667, 0.077189], abs=1e-6)


def test_er_and_erk_agree_on_linear_layers():
    shapes = [(100, 20), (300, 100), (10, 300)]
    assert er(shapes, 0.2) == erk(shapes, 0.2)


def test_only_the_largest_overflowing_layer_is_capped_at_a_time():
    # At the first factor both small layers overflow, but once the first of them is dense, the
    # second one no longer gets as much as it would have, relative to a cap of both at once.
    shapes = [(2, 2), (6, 6), (40, 40)]
    densities = erk(shapes, 0.3)
    assert max(densities) <= 1
    assert kept(shapes, densities) == pytest.approx(0.3 * (4 + 36 + 1600))


@pytest.mark.parametrize("name", ALLOCATIONS.names())
@given(shapes=shape_lists, density=st.floats(0.001, 1.0))
def test_every_allocation_meets_the_density(name, shapes, density):
    densities = ALLOCATIONS.get(name)(shapes, density)
    total = sum(math.prod(s) for s in shapes)
    assert len(densities) == len(shapes)
    assert all(0 < d <= 1 for d in densities)
    assert kept(shapes, densities) == pytest.approx(density * total, rel=1e-9)


@pytest.mark.parametrize("name", ALLOCATIONS.names())
@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_impossible_densities_are_refused(name, density):
    with pytest.raises(BudgetError, match=r"\(0, 1\]"):
        ALLOCATIONS.get(name)(CAPPED, density)


def test_unknown_name_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"'erk'.*Known: uniform, er, erk"):
        ALLOCATIONS.get("erkk")


@pytest.mark.parametrize(
    ("numel", "sparsity", "count"),
    [(100, 0.57, 43), (10, 0.7, 3), (7, 0.5, 4), (10, 0.0, 10), (3, 0.9, 1), (1000, 0.9999, 1)],
)
def test_num_nonzero_rounds_the_zeros_down(numel, sparsity, count):
    assert num_nonzero(numel, sparsity) == count


def test_exact_counts_give_the_rest_to_the_largest_remainder():
    assert exact_counts([(10,), (10,), (10,)], [0.23, 0.27, 0.25], 7) == [2, 3, 2]
    assert exact_counts([(3, 3), (3, 3)], [0.5, 0.5], 9) == [5, 4]


def test_exact_counts_leave_one_weight_in_each_layer():
    assert exact_counts([(1000,), (4,)], [0.1, 0.1], 100) == [99, 1]


@given(shapes=shape_lists, density=st.floats(0.0, 1.0), name=st.sampled_from(["uniform", "erk"]))
def test_exact_counts_are_exact(shapes, density, name):
    numels = [math.prod(s) for s in shapes]
    total = max(len(shapes), round(density * sum(numels)))
    densities = ALLOCATIONS.get(name)(shapes, total / sum(numels))
    counts = exact_counts(shapes, densities, total)
    assert sum(counts) == total
    assert all(1 <= count <= numel for count, numel in zip(counts, numels, strict=True))


@pytest.mark.parametrize(
    ("densities", "total", "message"),
    [
        ([0.5], 10, "one density"),
        ([0.5, 1.5], 10, "one density"),
        ([0.5, math.nan], 10, "one density"),
        ([0.5, 0.5], 1, "Lower the sparsity"),
        ([0.5, 0.5], 21, "Lower the sparsity"),
        ([0.5, 0.5], 15, "average"),
    ],
)
def test_exact_counts_refuse_what_cannot_be(densities, total, message):
    with pytest.raises(BudgetError, match=message):
        exact_counts([(10,), (10,)], densities, total)


def test_uniform():
    assert uniform(CAPPED, 0.2) == [0.2, 0.2, 0.2]
