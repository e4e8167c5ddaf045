"""Figure 4: spectral measures, coloured by accuracy."""

from isoflop.lab.reproduce.grid import TABLES, Grid
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.spectra import spectra_rows


@TABLES.register("figure4")
def figure4(preset: Preset) -> Grid:
    """Connectivity against weighted spectral gap, coloured by accuracy, at 50 % with RigL."""
    return Grid(
        title="Figure 4: spectral measures, coloured by accuracy, ResNet-18, CIFAR-100",
        rows=spectra_rows(preset),
        figure="measures-pareto",
    )
