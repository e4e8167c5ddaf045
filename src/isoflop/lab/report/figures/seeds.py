"""Lines of a group: means and confidence bands over its seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from isoflop.lab.metrics import Metric
from isoflop.lab.report.figure import Line, Panel, is_finite
from isoflop.lab.report.runs import Group, Run

Series = Sequence[tuple[float, float]]

CONFIDENCE = 0.95
LEAST_SEEDS = 3
BAND = (
    f"Bands: {100 * CONFIDENCE:g} % confidence of the mean (Student's t) from {LEAST_SEEDS} seeds."
)


def panels_by_task(
    groups: Sequence[Group],
    nouns: Callable[[Metric], Mapping[str, str]],
    x_label: str,
    series: Callable[[str], Callable[[Run], Series]],
) -> list[Panel]:
    """Return, for each task, a panel of each noun that some run has a series for.

    Args:
        groups: The groups; each is a line.
        nouns: Maps the measure that heads a task's results to what the y axes show, by key.
        x_label: What the x axes show.
        series: Maps a key to what `seed_line` takes.
    """
    panels = []
    for task in dict.fromkeys(group.task for group in groups):
        own = [group for group in groups if group.task == task]
        for key, noun in nouns(own[0].metric).items():
            lines = [line for group in own if (line := seed_line(group, series(key)))]
            if lines:
                panels.append(Panel(title=task, x_label=x_label, y_label=noun, marks=lines))
    return panels


def seed_line(group: Group, series: Callable[[Run], Series], **options: Any) -> Line | None:
    """Return the mean of a group's series, at the positions that all of its runs have.

    The band is the confidence interval of the mean by Student's t, from three seeds on; two say too
    little.

    Args:
        group: The group.
        series: Returns positions and values of a run; what is not finite is left out, and so are runs
            with nothing.
        options: Further options of the line.
    """
    found = [{x: y for x, y in series(run) if is_finite(x, y)} for run in group.runs]
    found = [values for values in found if values]
    if not found:
        return None
    places = sorted(set.intersection(*(set(values) for values in found)))
    if not places:
        return None
    table = np.array([[values[x] for x in places] for values in found])
    mean = table.mean(axis=0)
    low = high = None
    if len(found) >= LEAST_SEEDS:
        quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)
        half = quantile * table.std(axis=0, ddof=1) / math.sqrt(len(found))
        low, high = (mean - half).tolist(), (mean + half).tolist()
    # A single point is no line.
    line = {"x": places, "y": mean.tolist(), "low": low, "high": high, "markers": len(places) == 1}
    return Line(label=group.label, group=group.index, **line, **options)
