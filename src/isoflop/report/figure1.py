"""The paper's figure 1 from run directories: accuracy against training FLOPs."""

from collections.abc import Iterable
from pathlib import Path

from isoflop.errors import RunDirectoryError
from isoflop.models.extras import require
from isoflop.report.table import summary_table

# Okabe and Ito's palette, which the colour-blind can tell apart; markers differ too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"


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
    figure_class = require("matplotlib.figure", "train").Figure
    # Without pyplot there is no global state and no need for a display.
    figure = figure_class(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, row in enumerate(rows):
        axes.errorbar(
            row["training_flops"],
            row["accuracy_mean"],
            yerr=row["accuracy_std"],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=8,
            capsize=4,
            linestyle="none",
            label=row["label"],
        )
    flops = [row["training_flops"] for row in rows]
    axes.set_xscale("log")
    # Iso-FLOP points lie close together: leave room, so that the axis does not magnify nothing.
    axes.set_xlim(min(flops) / 1.5, max(flops) * 1.5)
    axes.set_xlabel("Training FLOPs (log scale)")
    axes.set_ylabel("Test accuracy (%)")
    counts = sorted({row["runs"] for row in rows})
    seeds = "–".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])
    recipes = ", ".join(dict.fromkeys(row["recipe"] for row in rows))
    axes.set_title(
        title or f"Accuracy against training FLOPs: {recipes}, mean ± std of {seeds} seeds"
    )
    axes.title.set_fontsize(11)
    axes.grid(which="both", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(Path(out), dpi=200)
