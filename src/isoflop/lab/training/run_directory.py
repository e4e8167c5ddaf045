"""The run directory: who may write to it, and what lies in it.

| file | content |
| --- | --- |
| `config.json` | all options of the run |
| `plan.json` | the plan, with the non-zeros after the latest epoch |
| `kernels.json` | what each compressed layer runs on |
| `metrics.jsonl` | one line per epoch |
| `masks.jsonl` | one line per change of the masks: how far they have moved |
| `spectra.jsonl` | one line per measurement of the spectra, if any were asked for |
| `skipped.jsonl` | samples that could not be read, if there were any |
| `checkpoint-…` | the state after the latest epoch |
| `tensorboard/` | the metrics once more, for TensorBoard |
| `summary.json` | the result; exists once the run is complete |
| `evaluation.json` | what `isoflop evaluate` measured |
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from isoflop.errors import RunDirectoryError, WriteError
from isoflop.files import ASIDE, as_path, make_folder, read_json, write_json, write_lines, writing

LOCK = ".lock"

# Where data and backbone lie does not change a run.
IGNORED_ON_RESUME = frozenset({"data", "backbone_run.path"})


class RunDirectory:
    """One run's directory.

    Args:
        path: Where it is, or will be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)

    @property
    def config_path(self) -> Path:
        """All options of the run."""
        return self.path / "config.json"

    @property
    def plan_path(self) -> Path:
        """The plan."""
        return self.path / "plan.json"

    @property
    def kernels_path(self) -> Path:
        """What each compressed layer runs on."""
        return self.path / "kernels.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def masks_path(self) -> Path:
        """One JSON line per change of the masks."""
        return self.path / "masks.jsonl"

    @property
    def spectra_path(self) -> Path:
        """One JSON line per measurement of the spectra."""
        return self.path / "spectra.jsonl"

    @property
    def skipped_path(self) -> Path:
        """One JSON line per sample that could not be read."""
        return self.path / "skipped.jsonl"

    @property
    def summary_path(self) -> Path:
        """The result of a complete run."""
        return self.path / "summary.json"

    @property
    def evaluation_path(self) -> Path:
        """What was measured after training."""
        return self.path / "evaluation.json"

    def check(self, config: dict[str, Any], *, resume: bool) -> None:
        """Raise unless a run with these options may start or go on here. Writes nothing.

        Raises:
            RunDirectoryError: Another process is writing here, or there is a run already and
                `resume` is not set, or it had other options, or there are other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{self.path} is a file. Choose another directory.")
        if not self.path.is_dir():
            return
        with self._locked(create=False):
            self._check_content(config, resume=resume)

    @contextlib.contextmanager
    def claim(self, config: dict[str, Any], *, resume: bool) -> Iterator[None]:
        """Create the directory and keep other processes out of it until the end of the block.

        Raises:
            RunDirectoryError: As for `check`.
            WriteError: The directory cannot be written; nothing is left of it if it is new.
        """
        make_folder(self.path)
        with self._locked(create=True):
            self._check_content(config, resume=resume)
            if not self.config_path.exists():
                try:
                    write_json(self.config_path, config)
                except WriteError:
                    self._leave_nothing()
                    raise
            for left in self.path.glob(f"{ASIDE}*"):  # of a process that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield

    def summary(self) -> dict[str, Any] | None:
        """Return the result, or None if the run is not complete."""
        return read_json(self.summary_path) if self.summary_path.exists() else None

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of each epoch so far."""
        return _lines(self.metrics_path)

    def masks(self) -> list[dict[str, Any]]:
        """Return how far the masks had moved at each of their changes so far."""
        return _lines(self.masks_path)

    def spectra(self) -> list[dict[str, Any]]:
        """Return the measurements of the spectra so far."""
        return _lines(self.spectra_path)

    def cut(self, step: int) -> None:
        """Forget all metrics and measurements after optimizer step `step`; -1 forgets everything."""
        for path in (self.metrics_path, self.masks_path, self.spectra_path):
            if path.exists():
                kept = [line for line in _lines(path) if line["step"] <= step]
                write_lines(path, kept)

    def _check_content(self, config: dict[str, Any], *, resume: bool) -> None:
        if not self.config_path.exists():
            others = sorted(
                entry.name
                for entry in self.path.iterdir()
                if entry.name != LOCK and not entry.name.startswith(ASIDE)
            )
            if others:
                raise RunDirectoryError(
                    f"{self.path} holds files of something else ({', '.join(others[:3])}). "
                    "Choose an empty or new directory."
                )
            return
        if not resume:
            raise RunDirectoryError(
                f"{self.path} already holds a run. Continue it with --resume, or choose another "
                "directory."
            )
        old, new = read_json(self.config_path), json.loads(json.dumps(config))
        changed = [
            f"{key}: {before!r} became {after!r}"
            for key, before, after in _differences(old, new)
            if key not in IGNORED_ON_RESUME
        ]
        if changed:
            raise RunDirectoryError(
                f"The run in {self.path} had other options ({'; '.join(changed)}). Resume it with "
                "the same options, or choose another directory."
            )

    def _leave_nothing(self) -> None:
        """Delete the directory of a run that could not begin, unless there is something in it."""
        if self.config_path.exists():
            return
        with contextlib.suppress(OSError):
            (self.path / LOCK).unlink(missing_ok=True)
            self.path.rmdir()

    @contextlib.contextmanager
    def _locked(self, *, create: bool) -> Iterator[None]:
        path = self.path / LOCK
        if not create and not path.exists():
            yield
            return
        lock = filelock.FileLock(path)
        try:
            with writing(path):
                free = _acquire(lock)
        except WriteError:
            self._leave_nothing()
            raise
        if not free:
            raise RunDirectoryError(
                f"Another process is running in {self.path}. Wait for it, or choose another directory."
            )
        try:
            yield
        finally:
            lock.release()


def _acquire(lock: filelock.BaseFileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return False
    return True


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON objects; one that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict) and "step" in line:
                lines.append(line)
    return lines


def _differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after
