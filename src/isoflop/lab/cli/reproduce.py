"""The command `isoflop reproduce`; heavy imports happen when it runs."""

import json as json_module
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from isoflop.errors import FigureError

if TYPE_CHECKING:
    from isoflop.lab.reproduce import Reproduction


@dataclass(kw_only=True)
class Reproduce:
    """Make a table or figure of the paper: train what is missing, compare with its numbers.

    What is done already is not done again, and what was interrupted goes on, so that the same
    command can be given until nothing is left.
    """

    table: tyro.conf.Positional[str]
    """`table2`, `table4` … `table15`, `figure1`, `figure3` … `figure7`; see `isoflop list`."""
    preset: Literal["smoke", "cpu", "full"] = "smoke"
    """`full` is the paper's setting; `cpu` trains stand-ins in hours, `smoke` in minutes."""
    out: Path = Path("reproduction")
    """Folder of the results, which tables share."""
    data: tuple[str, ...] = ()
    """Folder of the data, or DATASET=DIR for each data set."""
    seeds: int | None = None
    """Runs of each row; by default as many as the preset has."""
    epochs: int | None = None
    """Epochs, in place of every recipe's."""
    tokens: int | None = None
    """Tokens to train language models on, in place of every recipe's."""
    base_width: int | None = None
    """Channels of the first stage, in place of every recipe's."""
    batch_size: int | None = None
    """Batch size, in place of every recipe's; learning rates stay."""
    update_every: int | None = None
    """Optimizer steps between updates of the masks, in place of every recipe's."""
    only: tuple[str, ...] = ()
    """Rows to make, such as `method=rigl sparsity=0.9`; by default all."""
    jobs: int = 1
    """Runs at a time, each in a process of its own, with a GPU of its own where there are any."""
    threads: int = 1
    """Threads of each run."""
    ray: str | None = None
    """Address of a Ray cluster to run on: HOST:PORT, `auto`, or `local` for one on this machine."""
    dry_run: bool = False
    """Print the runs, what they cost and how long they take. Nothing is written."""
    no_calibration: bool = False
    """Estimate no times in a dry run, which takes a few measured steps of each model."""
    markdown: Path | None = None
    """File for the table as Markdown."""
    figure: Path | None = None
    """File for the figure (.png, .pdf, .svg), beside the one in the folder of the results."""
    json: bool = False
    """Print JSON; the progress goes to stderr."""

    def run(self) -> None:
        """Make the table and print it; what failed makes the exit code 1."""
        from isoflop.files import new_file, write_text
        from isoflop.lab.reproduce import DataFolders, Reproduction, Request
        from isoflop.lab.reproduce.text import format_markdown, format_table

        for path in (self.markdown, self.figure):
            if path is not None:
                new_file(path)
        request = Request(
            table=self.table,
            preset=self.preset,
            out=self.out,
            seeds=self.seeds,
            epochs=self.epochs,
            tokens=self.tokens,
            base_width=self.base_width,
            batch_size=self.batch_size,
            update_every=self.update_every,
            only=self.only,
            data=DataFolders.parse(self.data),
        )
        reproduction = Reproduction(request)
        if self.dry_run:
            self._forecast(reproduction)
            return
        table = reproduction.run(jobs=self.jobs, threads=self.threads, ray=self.ray, tell=_tell)
        print(json_module.dumps(table, indent=1) if self.json else format_table(table))
        if self.markdown is not None:
            write_text(self.markdown, format_markdown(table))
        self._draw(reproduction)
        if table["failed"]:
            sys.exit(1)

    def _draw(self, reproduction: "Reproduction") -> None:
        own = self.out / f"{self.table}.png"
        wanted = [own] if reproduction.grid.figure is not None else []
        wanted += [self.figure] if self.figure is not None else []
        try:
            for path in wanted:
                reproduction.save_figure(path)
        except FigureError as error:
            _tell(f"without figure: {error}")

    def _forecast(self, reproduction: "Reproduction") -> None:
        import torch

        from isoflop.lab.reproduce.forecast import format_forecast

        torch.set_num_threads(self.threads)
        found = reproduction.forecast(calibrate=not self.no_calibration, tell=_tell)
        if self.json:
            print(json_module.dumps(found, indent=1))
        else:
            print(format_forecast(found["title"], found, self.jobs))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
