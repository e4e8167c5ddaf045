"""What figures 4 and 6 have in common: three networks with RigL at 50 %, their spectra followed."""

from isoflop.lab.reproduce.grid import Row
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.tables.figure3 import family_training, number

_SPARSITY = 0.5


def spectra_rows(preset: Preset) -> tuple[Row, ...]:
    """Return the networks; their accuracies are those of tables 2 and 7."""
    rows = []
    for family in ("wide", "parallel", "factorized"):
        labels: dict[str, str | float] = {
            "transform": family,
            "method": "rigl",
            "sparsity": _SPARSITY,
        }
        paper = number(family, _SPARSITY)
        training = family_training(preset, labels, spectra="every=1epoch")
        rows.append(Row(labels=labels, source=training, paper=paper.value, paper_std=paper.std))
    return tuple(rows)
