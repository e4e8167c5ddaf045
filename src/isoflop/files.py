"""Files that are either complete or absent, whatever kills the process."""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isoflop.errors import RunDirectoryError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing it in one step."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, replacing it in one step."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path` as JSON, replacing it in one step."""
    write_text(path, to_json(data, indent=1) + "\n")


def write_lines(path: Path, objects: Iterable[Any]) -> None:
    """Write objects to `path` as lines of JSON, replacing it in one step."""
    write_text(path, "".join(to_json(line) + "\n" for line in objects))


def to_json(data: Any, indent: int | None = None) -> str:
    """Return plain data as JSON, which has no infinite numbers: they, and NaN, become null."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run directory.

    Raises:
        RunDirectoryError: The file is missing or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{path} holds no JSON object.")
    return data
