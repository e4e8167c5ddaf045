from typing import Any

import numpy as np
import pytest
import scipy.stats

from isoflop.lab.report import correlation

# What is optional is known where a test says so.
correlate: Any = correlation.correlate
correlate_runs: Any = correlation.correlate_runs
spearman = correlation.spearman


def drift(seed, length=40, common=0.0):
    """Two series that both rise, with steps that are alike by `common`."""
    generator = np.random.default_rng(seed)
    steps = generator.normal(size=(length, 2))
    steps[:, 1] = common * steps[:, 0] + (1 - common) * steps[:, 1]
    return np.cumsum(steps + 1.0, axis=0)


def test_spearman():
    pairs = np.array([[1, 1], [2, 8], [3, 27], [4, 5]], dtype=float)
    assert spearman(pairs) == pytest.approx(scipy.stats.spearmanr(*pairs.T)[0])
    assert spearman(pairs[:3]) == pytest.approx(1.0)
    assert spearman(np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 4.0]])) is None
    assert spearman(pairs[:1]) is None


def test_a_common_drift_is_told_from_a_common_movement():
    apart = [drift(seed) for seed in range(5)]
    assert correlate(apart).rho > 0.9
    found = correlate(apart, changes=True)
    assert found.low < 0 < found.high
    alike = correlate([drift(seed, common=0.9) for seed in range(5)], changes=True)
    assert 0.5 < alike.low < alike.rho < alike.high <= 1.0


def test_the_interval_repeats_and_holds_the_value():
    runs = [drift(seed, common=0.5) for seed in range(3)]
    found = correlate(runs, changes=True)
    assert found == correlate(runs, changes=True)
    assert found.low < found.rho < found.high
    assert (found.runs, found.points) == (3, 117)


def test_measures_that_never_change_have_no_correlation():
    fixed = np.column_stack([np.ones(6), np.arange(6.0)])
    found = correlate([fixed, fixed])
    assert (found.rho, found.low, found.high, found.runs, found.points) == (None, None, None, 2, 12)
    moving = np.column_stack([np.arange(6.0), np.arange(6.0)])
    assert correlate([fixed, moving]).rho == pytest.approx(1.0)
    assert correlate([]).rho is None
    assert correlate([fixed[:2]]).runs == 0  # too short


def test_over_runs():
    generator = np.random.default_rng(0)
    x = generator.normal(size=30)
    found = correlate_runs(np.column_stack([x, x + 0.1 * generator.normal(size=30)]))
    assert found.rho > 0.9
    assert 0.8 < found.low < found.high <= 1
    assert correlate_runs(np.ones((2, 2))).rho is None
    assert correlate_runs(np.empty((0, 2))).rho is None
