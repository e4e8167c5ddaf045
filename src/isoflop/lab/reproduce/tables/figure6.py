"""Figure 6: spectral measures against accuracy."""

from isoflop.lab.reproduce.grid import TABLES, Grid
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.spectra import spectra_rows


@TABLES.register("figure6")
def figure6(preset: Preset) -> Grid:
    """Spectral measures against accuracy, coloured by epoch, at 50 % with RigL."""
    return Grid(
        title="Figure 6: spectral measures against accuracy, ResNet-18, CIFAR-100",
        rows=spectra_rows(preset),
        figure="measures-accuracy",
    )
