"""Training curves with confidence bands over seeds."""

from collections.abc import Callable, Sequence

from isoflop.errors import FigureError
from isoflop.report.figure import Figure, Panel
from isoflop.report.figures.registry import FIGURES
from isoflop.report.figures.seeds import BAND, Series, seed_line
from isoflop.report.runs import Group, Run

_CURVES = {
    "train_loss": "Training loss",
    "test_accuracy": "Test accuracy (%)",
    "density": "Density",
    "training_flops": "Training FLOPs so far",
}


@FIGURES.register("curves")
def training_curves(groups: Sequence[Group]) -> list[Figure]:
    """Loss, accuracy, density and FLOPs by epoch, with confidence bands over seeds."""
    panels = []
    for task in dict.fromkeys(group.task for group in groups):
        own = [group for group in groups if group.task == task]
        for key, noun in _CURVES.items():
            lines = [line for group in own if (line := seed_line(group, _series(key)))]
            if lines:
                panels.append(Panel(title=task, x_label="Epoch", y_label=noun, marks=lines))
    if not panels:
        raise FigureError("No run has finished an epoch.")
    caption = f"Means over seeds. {BAND}"
    return [Figure(name="curves", title="Training", caption=caption, panels=panels, columns=2)]


def _series(key: str) -> Callable[[Run], Series]:
    return lambda run: [(line["epoch"], line[key]) for line in run.metrics]
