"""Distributions of the degrees of the masks."""

from collections.abc import Sequence

import numpy as np

from isoflop.lab.report.figure import Figure, Line, Panel
from isoflop.lab.report.figures.chosen import Masks, mask_figures
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.runs import Group

_BINS = 20


@FIGURES.register("degrees")
def degree_distributions(groups: Sequence[Group]) -> list[Figure]:
    """How many active weights the inputs and outputs of each layer have, at first and at last."""
    return mask_figures(
        groups,
        _panel,
        name="degrees",
        title="Degrees",
        caption="Inputs are channels at kernel positions.",
    )


def _panel(title: str, masks: Masks) -> Panel:
    return Panel(
        title=title,
        x_label="Degree ÷ largest possible",
        y_label="Share of nodes",
        marks=_lines(masks["initial"], masks["present"]),
    )


def _lines(initial: np.ndarray, present: np.ndarray) -> list[Line]:
    lines = []
    for when, mask, dashed in (("at first", initial, True), ("at last", present, False)):
        matrix = mask.reshape(mask.shape[0], -1)
        for group, noun in enumerate(("inputs", "outputs")):
            x, y = distribution(matrix.mean(axis=group))
            lines.append(Line(label=f"{noun} {when}", group=group, x=x, y=y, dashed=dashed))
    return lines


def distribution(degrees: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the middles of bins from 0 to 1, and which share of the degrees is in each."""
    counts, edges = np.histogram(degrees, bins=_BINS, range=(0.0, 1.0))
    return ((edges[1:] + edges[:-1]) / 2).tolist(), (counts / max(1, len(degrees))).tolist()
