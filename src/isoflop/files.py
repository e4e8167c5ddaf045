"""Files that are either complete or absent, whatever kills the process."""

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from isoflop.errors import RunDirectoryError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing it in one step.

    A new file gets the permissions that the umask leaves, one that is replaced keeps its own. Where
    `path` is a symbolic link, the file that it leads to is replaced.

    Raises:
        OSError: It cannot be written, as on a full disk. Nothing has changed then.
    """
    path = Path(os.path.realpath(path))
    aside = aside_of(path)
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            aside.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes its place at `path` in one step at the end of the block.

    A folder that is there is replaced. If the block raises, nothing has changed.
    """
    aside = aside_of(path)
    try:
        aside.mkdir()
        yield aside
        if path.exists():
            shutil.rmtree(path)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def aside_of(path: Path) -> Path:
    """Return an unused path beside `path`; what a killed process leaves there begins with `.tmp-`."""
    return path.parent / f".tmp-{secrets.token_hex(8)}"


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, replacing it in one step."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write `data` to `path` as JSON, replacing it in one step."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_lines(path: Path, objects: Iterable[Any]) -> None:
    """Write objects to `path` as lines of JSON, replacing it in one step."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in objects))


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
