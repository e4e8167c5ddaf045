"""The paper's figure 1 from run directories: accuracy against training FLOPs."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isoflop.errors import RunDirectoryError
from isoflop.models.extras import require
from isoflop.report.table import summary_table

# Okabe and Ito's palette, which the colour-blind can tell apart; markers differ too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"

SAME_FLOPS = 0.05
SPACING = 14.0  # points


def accuracy_against_training_flops(
    runs: Iterable[str | Path], out: str | Path, *, title: str | None = None
) -> None:
    """Draw accuracy against training FLOPs, one point per group of runs, and save the figure.

    Error bars are the standard deviation over the seeds.

    Args:
        runs: Run directories of complete runs; nothing else is read.
        out: Where to save; the suffix decides the format (`.png`, `.pdf`, `.svg`).
        title: Title; by default it names the recipe and the number of seeds.

    Raises:
        RunDirectoryError: There is no run, or one is not complete.
    """
    rows = summary_table(runs)
    if not rows:
        raise RunDirectoryError("There are no runs to draw.")
    _draw(rows, title).savefig(Path(out), dpi=200)


def _draw(rows: list[dict[str, Any]], title: str | None) -> Any:
    """Return the figure of the rows of `summary_table`."""
    figure_class = require("matplotlib.figure", "train").Figure
    # Without pyplot there is no global state and no need for a display.
    figure = figure_class(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    shift = require("matplotlib.transforms", "train").offset_copy
    for index, (row, offset) in enumerate(zip(rows, _offsets(rows), strict=True)):
        axes.errorbar(
            row["training_flops"],
            row["accuracy_mean"],
            yerr=row["accuracy_std"],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=7,
            capsize=4,
            linestyle="none",
            label=row["label"],
            transform=shift(axes.transData, figure, x=offset, units="points"),
        )
    flops = [row["training_flops"] for row in rows]
    axes.set_xscale("log")
    # Iso-FLOP points lie close together: leave room, so that the axis does not magnify nothing.
    axes.set_xlim(min(flops) / 1.5, max(flops) * 1.5)
    # Marks that are moved sideways do not count for the limits that Matplotlib chooses.
    low = min(row["accuracy_mean"] - (row["accuracy_std"] or 0) for row in rows)
    high = max(row["accuracy_mean"] + (row["accuracy_std"] or 0) for row in rows)
    # At least a point high, or the axis would make much of differences that are noise.
    margin = max(0.1 * (high - low), (1.0 - (high - low)) / 2)
    axes.set_ylim(low - margin, high + margin)
    ticker = require("matplotlib.ticker", "train")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(_power_of_ten))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("Training FLOPs (log scale; points of about equal FLOPs stand side by side)")
    axes.set_ylabel("Test accuracy (%)")
    counts = sorted({row["runs"] for row in rows})
    seeds = "–".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])
    recipes = ", ".join(dict.fromkeys(row["recipe"] for row in rows))
    spread = "one seed" if counts == [1] else f"mean ± std of {seeds} seeds"
    axes.set_title(title or f"Accuracy against training FLOPs: {recipes}, {spread}")
    axes.title.set_fontsize(11)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _offsets(rows: list[dict[str, Any]]) -> list[float]:
    """Return how many points each mark is moved sideways, so that equal FLOPs do not overlap."""
    offsets = []
    for index, row in enumerate(rows):
        alike = [
            other
            for other, candidate in enumerate(rows)
            if abs(candidate["training_flops"] / row["training_flops"] - 1) < SAME_FLOPS
        ]
        offsets.append(SPACING * (alike.index(index) - (len(alike) - 1) / 2))
    return offsets


def _power_of_ten(value: float, _position: int) -> str:
    exponent = math.floor(math.log10(value))
    factor = value / 10**exponent
    return rf"$10^{{{exponent}}}$" if factor < 1.01 else rf"${factor:.3g}\times10^{{{exponent}}}$"
