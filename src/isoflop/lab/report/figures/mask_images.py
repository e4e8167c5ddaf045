"""Masks as images."""

import math
from collections.abc import Sequence

import numpy as np

from isoflop.lab.report.figure import Figure, Image, Panel
from isoflop.lab.report.figures.chosen import Masks, mask_figures
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.runs import Group

LARGEST_SIDE = 64


@FIGURES.register("mask-images")
def mask_images(groups: Sequence[Group]) -> list[Figure]:
    """The masks of the first run of each group, layer by layer, as images of their density."""
    return mask_figures(
        groups,
        _panel,
        name="mask-images",
        title="Masks",
        caption="Outputs from top to bottom, inputs and kernel positions from left to right; large "
        "masks are averaged over blocks.",
        value_label="Active weights (%)",
        ratio=0.8,
    )


def _panel(title: str, masks: Masks) -> Panel:
    present = masks["present"]
    image = Image(label="", group=0, values=percentages(present))
    return Panel(title=title, x_label="×".join(map(str, present.shape)), marks=[image])


def percentages(mask: np.ndarray) -> np.ndarray:
    """Return how dense each block of a mask is, in percent, in at most 64 × 64 blocks.

    Args:
        mask: Boolean, (outputs, ...).
    """
    matrix = mask.reshape(mask.shape[0], -1).astype(np.float64)
    for axis in (0, 1):
        blocks = min(LARGEST_SIDE, matrix.shape[axis])
        starts = [math.floor(i * matrix.shape[axis] / blocks) for i in range(blocks)]
        sizes = np.diff([*starts, matrix.shape[axis]])
        sums = np.add.reduceat(matrix, starts, axis=axis)
        matrix = sums / (sizes[:, None] if axis == 0 else sizes)
    return np.rint(100 * matrix).astype(np.uint8)
