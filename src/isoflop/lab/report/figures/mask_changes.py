"""How much of the masks has changed during training."""

from collections.abc import Callable, Sequence

from isoflop.errors import FigureError
from isoflop.lab.report.figure import Figure
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.figures.seeds import BAND, Series, panels_by_task
from isoflop.lab.report.runs import Group, Run
from isoflop.lab.training.mask_history import shares

_SHARES = {
    "from_initial": "Distance to the first masks",
    "churn": "Distance to the previous masks",
    "explored": "Share of positions ever active",
}


@FIGURES.register("mask-changes")
def mask_changes(groups: Sequence[Group]) -> list[Figure]:
    """Hamming distances of the masks to the first and previous ones, and what they explored."""
    panels = panels_by_task(groups, lambda _metric: _SHARES, "Step", _series)
    if not panels:
        raise FigureError("No run has masks whose changes were recorded.")
    return [
        Figure(
            name="mask-changes",
            title="How the masks change",
            caption="Hamming distances, divided by the active weights of both masks: 0 for equal "
            "masks, 1 if they share nothing. Positions that were ever active are the in-time "
            f"over-parameterisation. {BAND}",
            panels=panels,
            columns=3,
        )
    ]


def _series(key: str) -> Callable[[Run], Series]:
    def series(run: Run) -> Series:
        points = [(line["step"], shares(line["layers"])[key]) for line in run.changes]
        last = run.metrics[-1]["step"] if run.metrics else 0
        if points and last > points[-1][0]:
            # The masks stay as they are after their last change.
            points.append((last, 0.0 if key == "churn" else points[-1][1]))
        return points[1:] if key == "churn" else points

    return series
