"""Training curves with confidence bands over seeds."""

from collections.abc import Callable, Sequence

from isoflop.errors import FigureError
from isoflop.lab.metrics import Metric
from isoflop.lab.report.figure import Figure
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.figures.seeds import BAND, Series, panels_by_task
from isoflop.lab.report.runs import Group, Run


def _curves(metric: Metric) -> dict[str, str]:
    return {
        "train_loss": "Training loss",
        f"test_{metric.name}": metric.label,
        "density": "Density",
        "training_flops": "Training FLOPs so far",
    }


@FIGURES.register("curves")
def training_curves(groups: Sequence[Group]) -> list[Figure]:
    """Loss, test results, density and FLOPs by epoch, with confidence bands over seeds."""
    panels = panels_by_task(groups, _curves, "Epoch", _series)
    if not panels:
        raise FigureError("No run has finished an epoch with finite results.")
    caption = f"Means over seeds. {BAND}"
    return [Figure(name="curves", title="Training", caption=caption, panels=panels, columns=2)]


def _series(key: str) -> Callable[[Run], Series]:
    return lambda run: [(line["epoch"], line[key]) for line in run.metrics]
