"""The paper's figure 1: accuracy, or what judges the task, against training FLOPs."""

from collections.abc import Sequence
from typing import Any

from isoflop.errors import FigureError
from isoflop.lab.report.figure import Figure, Panel, Points
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.runs import Group
from isoflop.lab.report.table import drawable, left_out, rows_of

SAME_FLOPS = 0.05
SPACING = 14.0  # points


@FIGURES.register("accuracy-flops")
def accuracy_against_flops(groups: Sequence[Group]) -> list[Figure]:
    """Accuracy against training FLOPs, a panel per task; error bars are the standard deviation."""
    everything = rows_of(groups)
    if not everything:
        raise FigureError("No run is complete.")
    rows = [row for row in everything if drawable(row) and row["training_flops"] > 0]
    if not rows:
        raise FigureError("No complete run has a finite result.")
    tasks = dict.fromkeys(row["recipe"] for row in rows)
    counts = sorted({row["runs"] for row in rows})
    seeds = "–".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])
    spread = "One seed" if counts == [1] else f"Mean ± std of {seeds} seeds"
    return [
        Figure(
            name="accuracy-flops",
            title="Accuracy against training FLOPs",
            caption=f"{spread}. Logarithmic scale; in print, points of about equal FLOPs stand side "
            f"by side.{left_out(everything, rows)}",
            panels=[_panel(task, [row for row in rows if row["recipe"] == task]) for task in tasks],
        )
    ]


def _panel(task: str, rows: Sequence[dict[str, Any]]) -> Panel:
    flops = [row["training_flops"] for row in rows]
    low = min(row["mean"] - (row["std"] or 0) for row in rows)
    high = max(row["mean"] + (row["std"] or 0) for row in rows)
    # At least a hundredth high, or the axis would make much of differences that are noise.
    margin = max(0.1 * (high - low), (abs(high) / 100 - (high - low)) / 2) or 1.0
    return Panel(
        title=task,
        x_label="Training FLOPs",
        y_label=rows[0]["metric_label"],
        x_log=True,
        # Iso-FLOP points lie close together: leave room, so that the axis does not magnify nothing.
        x_range=(min(flops) / 1.5, max(flops) * 1.5),
        y_range=(low - margin, high + margin),
        marks=[
            Points(
                label=row["label"],
                group=row["group"],
                x=[row["training_flops"]],
                y=[row["mean"]],
                error=None if row["std"] is None else [row["std"]],
                shift=shift,
            )
            for row, shift in zip(rows, _shifts(flops), strict=True)
        ],
    )


def _shifts(flops: Sequence[float]) -> list[float]:
    """Return how many points each mark is moved sideways, so that equal FLOPs do not overlap."""
    shifts = []
    for index, own in enumerate(flops):
        alike = [i for i, other in enumerate(flops) if abs(other / own - 1) < SAME_FLOPS]
        shifts.append(SPACING * (alike.index(index) - (len(alike) - 1) / 2))
    return shifts
