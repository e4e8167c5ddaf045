from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import BudgetError
from isoflop.methods.pruning_schedule import CubicPruningSchedule


def pruning_schedule(**changes):
    values = {"initial_density": 1.0, "begin": 0.0, "end": 1.0, "update_every": 1}
    return CubicPruningSchedule(**(values | {"per_layer": True} | changes))


@pytest.mark.parametrize(
    ("initial", "sparsities"),
    [(0.0, [0.52031, 0.7875, 0.88594]), (0.5, [0.73125, 0.85, 0.89375])],
)
def test_the_cubic_ramp_to_ninety_percent(initial, sparsities):
    left = [pruning_schedule().remaining(step, 100) for step in (25, 50, 75, 100)]
    found = [0.9 + (initial - 0.9) * float(r) for r in left]
    assert found == pytest.approx([*sparsities, 0.9], abs=5e-6)


def test_pruning_happens_between_begin_and_end():
    r = pruning_schedule(begin=0.25, end=0.5, update_every=10)
    assert [t for t in range(101) if r.due(t, 100)] == [30, 40, 50]  # t_0 = 20
    assert [r.remaining(t, 100) for t in (29, 30, 50, 99)] == [1, Fraction(8, 27), 0, 0]


def test_the_average_density_approaches_the_closed_form():
    # (t_f / T) [d_f + (d_i - d_f) / 4] + (1 - t_f / T) d_f for .5 to .1 in half the time.
    mean = pruning_schedule(end=0.5).mean_remaining(100_000)
    assert 0.1 + 0.4 * float(mean) == pytest.approx(0.15, abs=1e-5)


ramps = st.builds(
    pruning_schedule,
    begin=st.floats(0, 0.5),
    end=st.floats(0.6, 1),
    update_every=st.integers(1, 5),
)


@given(ramps, st.integers(60, 300))
def test_the_mean_is_that_of_all_steps(r, steps):
    # The step t + 1 runs with the masks that follow step t.
    assert r.mean_remaining(steps) == sum(r.remaining(t, steps) for t in range(steps)) / steps
    changes = [t for t in range(1, steps + 9) if r.remaining(t, steps) != r.remaining(t - 1, steps)]
    assert changes == [t for t in range(1, steps + 9) if r.due(t, steps)]


@given(ramps, st.integers(60, 300), st.integers(10**6, 10**12))
def test_the_final_cost_meets_the_mean(r, steps, initial):
    mean = initial * 3 // 4
    final = r.final_cost(initial, mean, steps)
    total = sum(r.cost(initial, final, t, steps) for t in range(steps))
    assert abs(total - steps * mean) <= steps
    assert r.cost(initial, final, steps, steps) == final


def test_impossible_ramps_are_refused():
    with pytest.raises(
        BudgetError, match=r"initial_density below 0\.797, or a pruning_end below 0\.5"
    ):
        pruning_schedule(end=0.5).final_cost(1000, 100, 1000)
    with pytest.raises(BudgetError, match="larger initial_density"):
        pruning_schedule(initial_density=0.1).final_cost(1000, 2000, 1000)
    with pytest.raises(BudgetError, match="smaller update_every"):
        pruning_schedule(end=0.5, update_every=600).check(1000)
