"""Where the metrics of a run go: a file of JSON lines, TensorBoard, and the terminal."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from isoflop.models.extras import require
from isoflop.training.rundir import RunDirectory


class Tracker:
    """Writes the metrics of each epoch to `metrics.jsonl` and to TensorBoard.

    Args:
        run: The run directory.
        first_epoch: Epochs done before; TensorBoard forgets what it has of later ones.
    """

    def __init__(self, run: RunDirectory, first_epoch: int) -> None:
        self._file = open(run.metrics_path, "a", encoding="utf-8")  # noqa: SIM115  (closed in close)
        writer = require("torch.utils.tensorboard", "train").SummaryWriter
        self._board = writer(str(run.path / "tensorboard"), purge_step=first_epoch + 1)

    def log(self, metrics: dict[str, Any]) -> None:
        """Write the metrics of one epoch, safe from a kill once this returns."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "epoch":
                self._board.add_scalar(name, value, metrics["epoch"])

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()


class Display:
    """Shows progress on stderr: a bar on a terminal, else a line per epoch, or nothing.

    Args:
        epochs: Epochs of the run.
        samples: Samples of the run.
        done: Samples seen before a resume.
        quiet: Show nothing.
    """

    def __init__(self, epochs: int, samples: int, done: int, *, quiet: bool) -> None:
        self._epochs = epochs
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
            f"accuracy {metrics['test_accuracy']:.2f} %"
        )
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif not self._quiet:
            print(f"{text}  {metrics['seconds']:.1f} s", file=sys.stderr, flush=True)
