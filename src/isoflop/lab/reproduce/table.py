"""Makes a table: runs what is missing, and says what came out beside the paper's numbers."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import FigureError, IsoflopError
from isoflop.files import write_json
from isoflop.lab.report import FIGURES, group_runs, load_run, save_figure
from isoflop.lab.report.figure import Figure
from isoflop.lab.report.figures.speed import relative_times, speed_ups
from isoflop.lab.reproduce.cluster import RayExecutor
from isoflop.lab.reproduce.data import DataFolders
from isoflop.lab.reproduce.folder import check_folder, claim_folder
from isoflop.lab.reproduce.forecast import forecast
from isoflop.lab.reproduce.grid import TABLES, Grid, Row
from isoflop.lab.reproduce.local import LocalExecutor
from isoflop.lab.reproduce.presets import get_preset
from isoflop.lab.reproduce.results import filled, with_needs, works_of
from isoflop.lab.reproduce.schedule import run_all
from isoflop.lab.reproduce.selection import select_rows
from isoflop.lab.reproduce.work import RunWork, TimingWork, Work, is_done
from isoflop.lab.tasks import TASKS

_SPEED = {"relative-times": relative_times, "speed-ups": speed_ups}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which part of which table to make, and how.

    Attributes:
        table: Registered name of the table or figure.
        preset: Name of the preset.
        out: Folder of the results, which may hold those of other tables.
        seeds: Number of seeds; by default the preset's.
        epochs: Epochs in place of every recipe's.
        tokens: Tokens in place of those of every recipe of a language model.
        base_width: Width in place of every recipe's, for models that have one.
        batch_size: Batch size in place of every recipe's.
        update_every: Steps between updates of the masks in place of every recipe's.
        only: Labels of rows, such as ``method=rigl``; by default all.
        data: Folders of the data sets.
    """

    table: str
    preset: str = "smoke"
    out: Path
    seeds: int | None = None
    epochs: int | None = None
    tokens: int | None = None
    base_width: int | None = None
    batch_size: int | None = None
    update_every: int | None = None
    only: tuple[str, ...] = ()
    data: DataFolders = field(default_factory=DataFolders)


class Reproduction:
    """A table with the work that it takes.

    Args:
        request: What is asked for.

    Raises:
        IsoflopError: Something of it does not exist or makes no sense. Nothing has been written.
    """

    def __init__(self, request: Request) -> None:
        if request.seeds is not None and request.seeds < 1:
            raise IsoflopError(f"--seeds must be at least 1, not {request.seeds}.")
        self.request = request
        self.folder = request.out
        build = TABLES.get(request.table)
        preset = get_preset(
            request.preset,
            epochs=request.epochs,
            tokens=request.tokens,
            base_width=request.base_width,
            batch_size=request.batch_size,
            update_every=request.update_every,
        )
        self.grid: Grid = build(preset)
        self.rows: list[Row] = select_rows(self.grid.rows, request.only)
        seeds = request.seeds or preset.seeds or self.grid.seeds
        check_folder(self.folder)
        self._works = [works_of(row, seeds, request.data) for row in self.rows]
        self.works: list[Work] = with_needs([work for works in self._works for work in works])

    def forecast(self, *, calibrate: bool, tell: Callable[[str], None]) -> dict[str, Any]:
        """Return what there is to do and what it costs; see `forecast`."""
        found = forecast(self.works, self.folder, calibrate=calibrate, tell=tell)
        head = {"table": self.request.table, "title": self.grid.title}
        return {**head, "preset": self.request.preset, **found}

    def run(
        self, *, jobs: int, threads: int, ray: str | None, tell: Callable[[str], None]
    ) -> dict[str, Any]:
        """Do what is not done yet, and return the table, which is in the folder too.

        Args:
            jobs: Processes at a time on this machine.
            threads: Threads of each.
            ray: Address of a Ray cluster to use instead.
            tell: Called with lines on the progress.

        Returns:
            Plain data: `table`, `title`, `unit`, `preset`; `paper_setting`, whether the setting is
            the paper's, and `setting`, in what it is not; `rows` (see `filled`); and `failed`, each
            with `run` and `error`.
        """
        left = [work for work in self.works if not is_done(work, self.folder)]
        self._check_data(left)
        if ray is not None and any(isinstance(work, TimingWork) for work in left):
            raise IsoflopError("Times are measured on this machine: leave out --ray.")
        failed: dict[str, str] = {}
        done = len(self.works) - len(left)

        def ended(work: Work, error: str | None) -> None:
            nonlocal done
            done += 1
            outcome = "done" if error is None else f"failed: {error}"
            tell(f"[{done}/{len(self.works)}] {work.name}: {outcome}")
            if error is not None:
                failed[work.name] = error

        executor = LocalExecutor(jobs, threads) if ray is None else RayExecutor(ray)
        with executor:
            claim_folder(self.folder)
            if left:
                tell(f"{len(self.works)} runs, {done} of them done before")
            run_all(self.works, self.folder.absolute(), executor, ended)
        table = self.table(failed)
        self._save(table)
        return table

    def table(self, failed: dict[str, str]) -> dict[str, Any]:
        """Return the table as far as there are results."""
        rows = [
            filled(row, works, self.folder, failed)
            for row, works in zip(self.rows, self._works, strict=True)
        ]
        parts = [part for row in rows for part in row["deviation"].split("; ") if part]
        deviations = list(dict.fromkeys(parts))
        return {
            "table": self.request.table,
            "title": self.grid.title,
            "unit": self.grid.unit,
            "preset": self.request.preset,
            "paper_setting": not deviations,
            "setting": "; ".join(deviations),
            "rows": rows,
            "failed": [{"run": name, "error": error} for name, error in failed.items()],
        }

    def draw(self) -> Figure:
        """Return the figure of the table.

        Raises:
            FigureError: There is none, or there are no results for it yet.
        """
        name = self.grid.figure
        if name is None:
            raise FigureError(f"{self.request.table} has no figure.")
        done = [work for work in self.works if is_done(work, self.folder)]
        if name in _SPEED:
            timings = [work for work in done if isinstance(work, TimingWork)]
            figures = _SPEED[name](work.result(self.folder) or [] for work in timings)
        else:
            runs = [self.folder / work.name for work in done if isinstance(work, RunWork)]
            figures = FIGURES.get(name)(group_runs(map(load_run, runs)))
        return figures[0]

    def save_figure(self, path: Path) -> None:
        """Draw the figure of the table and save it.

        Raises:
            FigureError: There is none, or there are no results for it yet.
        """
        save_figure(self.draw(), path)

    def _save(self, table: dict[str, Any]) -> None:
        try:
            write_json(self.folder / f"{self.request.table}.json", table)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise IsoflopError(
                f"The disk of {self.folder} is full. Free some space and give the same command "
                "again: what is done stays done."
            ) from error

    def _check_data(self, works: Sequence[Work]) -> None:
        """Raise `DataError` if data of these runs are missing, before the first is started."""
        checked = set()
        for work in works:
            if isinstance(work, RunWork):
                recipe, folder = work.job.recipe, work.job.data
                key = (recipe.task, recipe.dataset, recipe.input_shape, folder)
                if key not in checked:
                    TASKS.get(recipe.task).load(recipe, folder)
                checked.add(key)
