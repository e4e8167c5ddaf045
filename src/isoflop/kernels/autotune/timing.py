"""Measured times, and the file in which they are kept."""

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from isoflop.errors import CacheWarning
from isoflop.files import write_json

Name = TypeVar("Name", bound=str)

ROUNDS = 5
"""Least number of times that each contestant runs, after one run to warm up."""

SECONDS = 0.2
"""Further rounds follow while all contestants together have taken less than that."""


def measure(contestants: Mapping[Name, Callable[[], object]]) -> dict[Name, float]:
    """Return the least time of each contestant in seconds; they take turns."""
    best = dict.fromkeys(contestants, float("inf"))
    for run in contestants.values():
        run()
    start, rounds = time.perf_counter(), 0
    while rounds < ROUNDS or time.perf_counter() - start < SECONDS:
        for name, run in contestants.items():
            before = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - before)
        rounds += 1
    return best


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; CPUs have."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TimingCache:
    """Times by what they were measured for, kept in a JSON file.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._times: dict[str, dict[Any, float]] = _read(path)
        self._new: dict[str, dict[Any, float]] = {}

    def times(
        self, what: Mapping[str, Any], contestants: Mapping[Name, Callable[[], object]]
    ) -> dict[Name, float]:
        """Return the times of the contestants in seconds, measured if they are not known.

        Args:
            what: Everything on which the times depend, as plain data.
            contestants: What to run.
        """
        key = json.dumps(what, sort_keys=True)
        known = self._times.get(key, {})
        if not known.keys() >= contestants.keys():
            known = self._times[key] = self._new[key] = measure(contestants)
        return {name: known[name] for name in contestants}

    def save(self) -> None:
        """Write the file, with what other processes have added to it meanwhile."""
        if self._path is None or not self._new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Those of others stay, so that all processes go by the same ones, unless they say less.
            written = _read(self._path)
            more = {k: t for k, t in self._new.items() if not written.get(k, {}).keys() >= t.keys()}
            write_json(self._path, written | more)
        except OSError as error:
            warnings.warn(
                f"The times of layers cannot be kept in {self._path} ({error}); they will be measured "
                "again. Set ISOFLOP_CACHE to a folder that can be written.",
                CacheWarning,
                stacklevel=3,
            )


def default_cache_path() -> Path | None:
    """Return the file of the times: in the folder `ISOFLOP_CACHE`, else the user's cache folder.

    There is none for users without a home, as in containers that are run by an unknown number.
    """
    folder = os.environ.get("ISOFLOP_CACHE")
    if folder:
        return Path(folder) / "timings.json"
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "isoflop" / "timings.json"
    except RuntimeError:
        return None


def _read(path: Path | None) -> dict[str, dict[Any, float]]:
    try:
        if path is None or not path.exists():
            return {}
        data = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(key): {str(name): _seconds(value) for name, value in times.items()}
            for key, times in data.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        warnings.warn(
            f"The times of layers in {path} cannot be read ({error}); they are measured again.",
            CacheWarning,
            stacklevel=4,
        )
        return {}


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{value} is no time")
    return seconds
