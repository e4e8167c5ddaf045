"""Rank correlations between spectral measures and accuracy, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

Pairs = np.ndarray
"""Measure and accuracy of each epoch of a run, in their order: float64, (epochs, 2)."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Correlation:
    """A rank correlation.

    Attributes:
        rho: Spearman's ρ, the mean over the runs; None where it is not defined, such as for a
            measure that never changes.
        low: Lower end of the bootstrap interval, and `high` the upper one; None without ρ.
        high: See `low`.
        runs: How many runs it is of.
        points: How many points these have together.
    """

    rho: float | None
    low: float | None
    high: float | None
    runs: int
    points: int


def correlate(
    runs: Sequence[Pairs], *, changes: bool = False, resamples: int = 2000, seed: int = 0
) -> Correlation:
    """Return how measure and accuracy correlate along training.

    Spearman's ρ is taken in every run, and averaged. Two quantities that both drift with the epochs
    correlate whatever they have to do with each other; ``changes=True`` compares what they do from
    one epoch to the next instead, which a common drift does not make alike.

    The percentile interval resamples the runs and, since epochs depend on those before, blocks of
    neighbouring epochs in each (moving blocks of n^(1/3) epochs: Künsch 1989). With three runs it
    is no more than a rough guide.

    Args:
        runs: The pairs of each run.
        changes: Whether to take the changes from epoch to epoch.
        resamples: Bootstrap samples.
        seed: Seed of the bootstrap.
    """
    series = [np.diff(run, axis=0) if changes else run for run in runs]
    series = [run for run in series if len(run) >= 3]
    points = sum(len(run) for run in series)
    rho = _mean([spearman(run) for run in series])
    if rho is None:
        return Correlation(None, None, None, len(series), points)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        chosen = generator.integers(len(series), size=len(series))
        value = _mean([spearman(_blocks(series[i], generator)) for i in chosen])
        if value is not None:
            found.append(value)
    low, high = _interval(found)
    return Correlation(rho, low, high, len(series), points)


def correlate_runs(pairs: Pairs, *, resamples: int = 2000, seed: int = 0) -> Correlation:
    """Return how measure and accuracy at the end correlate over runs.

    Args:
        pairs: Final measure and final accuracy of each run, (runs, 2).
        resamples: Bootstrap samples.
        seed: Seed of the bootstrap.
    """
    rho = spearman(pairs) if len(pairs) >= 3 else None
    if rho is None:
        return Correlation(None, None, None, len(pairs), len(pairs))
    generator = np.random.default_rng(seed)
    samples = (pairs[generator.integers(len(pairs), size=len(pairs))] for _ in range(resamples))
    low, high = _interval([value for s in samples if (value := spearman(s)) is not None])
    return Correlation(rho, low, high, len(pairs), len(pairs))


def spearman(pairs: Pairs) -> float | None:
    """Return Spearman's ρ of (n, 2) pairs, or None if one of both never changes.

    Pairs with NaN are left out.
    """
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    if len(pairs) < 2 or (pairs == pairs[0]).all(axis=0).any():
        return None
    ranks = scipy.stats.rankdata(pairs, axis=0)
    return float(np.corrcoef(ranks.T)[0, 1])


def _blocks(run: Pairs, generator: np.random.Generator) -> Pairs:
    length = max(1, round(len(run) ** (1 / 3)))
    number = -(-len(run) // length)
    starts = generator.integers(len(run) - length + 1, size=number)
    places = (starts[:, None] + np.arange(length)).reshape(-1)[: len(run)]
    return run[places]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
