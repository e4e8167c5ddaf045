"""The command `isoflop spectra`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from isoflop.lab.cli.output import print_json


@dataclass(kw_only=True)
class Spectra:
    """Measure the spectra of the masks of a run, as its latest checkpoint has them."""

    path: tyro.conf.Positional[Path]
    """Run directory, or a checkpoint in one."""
    bound: Literal["mean-degree", "biregular", "mu0"] = "mean-degree"
    """Bound of a Ramanujan graph; see docs/spectra.md."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Print the measures of every layer and of the network."""
        import time

        from isoflop.lab.report import format_spectra
        from isoflop.lab.training import restore
        from isoflop.lab.training.observer import measure

        restored = restore(self.path)
        start = time.perf_counter()
        found = measure(restored.model, self.bound)
        seconds = time.perf_counter() - start
        result = {"epoch": restored.epoch, "step": restored.step, "seconds": seconds, **found}
        if self.json:
            print_json(result)
        else:
            print(format_spectra(result))
