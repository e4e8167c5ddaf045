"""Where the measurements of a run go: files of JSON lines, TensorBoard, and the terminal."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from isoflop.files import append_json
from isoflop.lab.metrics import Metric
from isoflop.lab.training.mask_history import shares
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.optional import require


class Tracker:
    """Writes what is measured of a run to its files of JSON lines and to TensorBoard.

    Args:
        run: The run directory.
        first_step: Optimizer steps taken before; TensorBoard forgets what it has of later ones.
    """

    def __init__(self, run: RunDirectory, first_step: int) -> None:
        self._run = run
        writer = require("torch.utils.tensorboard", "train").SummaryWriter
        self._board = writer(str(run.path / "tensorboard"), purge_step=first_step + 1)

    def log(self, metrics: dict[str, Any]) -> None:
        """Write the metrics of one epoch, safe from a kill once this returns."""
        append_json(self._run.metrics_path, metrics)
        self._scalars("", metrics, metrics["step"])

    def log_masks(self, line: dict[str, Any]) -> None:
        """Write one change of the masks."""
        append_json(self._run.masks_path, line)
        self._scalars("masks/", shares(line["layers"]), line["step"])
        self._scalars("", {"training_flops": line["training_flops"]}, line["step"])

    def log_spectra(self, line: dict[str, Any]) -> None:
        """Write one measurement of the spectra."""
        append_json(self._run.spectra_path, line)
        self._scalars("spectra/", line["network"], line["step"])

    def _scalars(self, prefix: str, values: Mapping[str, Any], step: int) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                self._board.add_scalar(prefix + name, value, step)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._board.close()


@contextlib.contextmanager
def messages(*, quiet: bool) -> Iterator[None]:
    """Show on stderr, unless `quiet`, what the library tells of long work while the block runs."""
    logger, level = logging.getLogger("isoflop"), logging.getLogger("isoflop").level
    # Without any handler, Python itself would print warnings.
    handler = logging.NullHandler() if quiet else logging.StreamHandler()
    logger.addHandler(handler)
    if not quiet:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class Display:
    """Shows progress on stderr: a bar on a terminal, else a line per epoch, or nothing.

    Args:
        epochs: Epochs of the run.
        samples: Samples of the run.
        done: Samples seen before a resume.
        metric: The measure to show.
        quiet: Show nothing.
    """

    def __init__(
        self, epochs: int, samples: int, done: int, metric: Metric, *, quiet: bool
    ) -> None:
        self._epochs = epochs
        self._metric = metric
        self._quiet = quiet
        self._bar = None
        if not quiet and sys.stderr.isatty():
            progress = require("rich.progress", "train")
            console = require("rich.console", "train").Console(stderr=True)
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("training", total=samples, completed=done, rate="")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar while the block runs."""
        with self._bar or contextlib.nullcontext():
            yield

    def advance(self, samples: int) -> None:
        """Note that `samples` more samples have been seen."""
        if self._bar is not None:
            speed = self._bar.tasks[0].speed
            rate = f"{speed:,.0f} samples/s" if speed else ""
            self._bar.update(self._task, advance=samples, rate=rate)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Show the metrics of one epoch."""
        text = (
            f"epoch {metrics['epoch']}/{self._epochs}  loss {metrics['train_loss']:.4f}  "
            f"{self._metric.text(metrics['test_' + self._metric.name])}"
        )
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif not self._quiet:
            print(f"{text}  {metrics['seconds']:.1f} s", file=sys.stderr, flush=True)
