"""The paper's figure 6: spectral measures against accuracy, coloured by epoch."""

from collections.abc import Callable, Sequence

from isoflop.errors import FigureError
from isoflop.lab.report.figure import Figure, Panel, Points, is_finite
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.figures.seeds import BAND, Series, seed_line
from isoflop.lab.report.runs import Group, Run
from isoflop.lab.report.spectra import epochs_with_spectra

NAMES = {
    "ramanujan_gap": "Δr",
    "imdb": "Δr_imdb",
    "imdb_normalized": "Δr_imdb, normalised",
    "spectral_gap": "λ",
    "imsg": "λ_imsg",
}
_DRAWN = ("ramanujan_gap", "imdb", "spectral_gap", "imsg")
WITHOUT = "No run has spectra. Train with --spectra every=1epoch."


@FIGURES.register("measures-accuracy")
def measures_against_accuracy(groups: Sequence[Group]) -> list[Figure]:
    """Spectral measures of the network against test results, coloured by epoch."""
    panels = []
    for group in groups:
        points = [point for run in group.runs for point in epochs_with_spectra(run)]
        for name in _DRAWN:
            known = [p for p in points if is_finite(p.measures[name], p.score)]
            if known:
                mark = Points(
                    label="",
                    group=group.index,
                    x=[point.measures[name] or 0.0 for point in known],
                    y=[point.score for point in known],
                    values=[point.epoch for point in known],
                )
                panels.append(
                    Panel(
                        title=group.label,
                        x_label=NAMES[name],
                        y_label=group.metric.label,
                        marks=[mark],
                    )
                )
    if not panels:
        raise FigureError(WITHOUT)
    return [
        Figure(
            name="measures-accuracy",
            title="Spectral measures against test results",
            caption="One point per epoch and seed; measures are means over the layers.",
            panels=panels,
            columns=4,
            value_label="Epoch",
            ratio=1.0,
        )
    ]


@FIGURES.register("measures-training")
def measures_over_training(groups: Sequence[Group]) -> list[Figure]:
    """Spectral measures of the network over training."""
    panels = []
    for name in _DRAWN:
        lines = [line for group in groups if (line := seed_line(group, _series(name)))]
        if lines:
            panels.append(Panel(x_label="Step", y_label=NAMES[name], marks=lines))
    if not panels:
        raise FigureError(WITHOUT)
    return [
        Figure(
            name="measures-training",
            title="Spectral measures during training",
            caption=f"Means over the layers and over seeds. {BAND}",
            panels=panels,
            columns=2,
        )
    ]


def _series(name: str) -> Callable[[Run], Series]:
    return lambda run: [(line["step"], line["network"].get(name)) for line in run.spectra]
