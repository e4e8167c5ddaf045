"""Spectral measures of a run beside its results."""

from dataclasses import dataclass

from isoflop.lab.report.runs import Run
from isoflop.spectral import MEASURES


@dataclass(frozen=True)
class Epoch:
    """What is known of one epoch.

    Attributes:
        epoch: Its number, the first being 1.
        score: The measure that heads the results, after it.
        measures: The network's measures, of the latest measurement in the epoch.
    """

    epoch: int
    score: float
    measures: dict[str, float | None]


def epochs_with_spectra(run: Run) -> list[Epoch]:
    """Return the epochs of a run in which the spectra were measured."""
    epochs, before = [], 0
    score = f"test_{run.metric.name}"
    for line in run.metrics:
        inside = [s for s in run.spectra if before < s["step"] <= line["step"]]
        if inside:
            network = inside[-1]["network"]
            measures = {name: network.get(name) for name in MEASURES}
            epochs.append(Epoch(line["epoch"], line[score], measures))
        before = line["step"]
    return epochs
