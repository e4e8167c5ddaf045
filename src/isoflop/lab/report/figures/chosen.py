"""Figures of the masks of each group, with so many layers as a figure can hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from isoflop.errors import FigureError
from isoflop.lab.report.figure import Figure, Panel
from isoflop.lab.report.runs import Group

LARGEST = 24

Masks = Mapping[str, np.ndarray]
"""What is known of the mask of a layer, by when: ``initial``, ``present``, ``ever``."""


def spread(names: Sequence[str]) -> list[str]:
    """Return the names, or so many of them, evenly spread, that a figure can hold."""
    if len(names) <= LARGEST:
        return list(names)
    return [names[round(i * (len(names) - 1) / (LARGEST - 1))] for i in range(LARGEST)]


def note(names: Sequence[str]) -> str:
    """Return what a caption must say of layers that are left out."""
    return f" {LARGEST} of {len(names)} layers are shown." if len(names) > LARGEST else ""


def mask_figures(
    groups: Sequence[Group],
    panel: Callable[[str, Masks], Panel],
    *,
    name: str,
    title: str,
    caption: str,
    **options: Any,
) -> list[Figure]:
    """Return a figure of each group whose first run has masks, with a panel for each layer.

    Args:
        groups: The groups.
        panel: Returns the panel of a layer, given what it is called and its masks.
        name: Begin of the names of the figures.
        title: Begin of their titles.
        caption: Begin of their captions.
        options: Further options of the figures.

    Raises:
        FigureError: No run has masks.
    """
    figures = []
    for group in groups:
        run = group.runs[0]
        names = list(run.masks)
        if names:
            figures.append(
                Figure(
                    name=f"{name}-{group.index}",
                    title=f"{title}: {group.label}",
                    caption=f"{caption} Seed {run.config['seed']}.{note(names)}",
                    panels=[panel(x.removesuffix(".weight"), run.masks[x]) for x in spread(names)],
                    columns=4,
                    **options,
                )
            )
    if not figures:
        raise FigureError("No run has a checkpoint with masks.")
    return figures
