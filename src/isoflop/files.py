"""Files that are either complete or absent, whatever kills the process."""

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from isoflop.errors import RunDirectoryError, WriteError

ASIDE = ".tmp-"
"""What the names of files and folders begin with that are not complete."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a `WriteError` that names `path` where the block cannot write."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError) as error:
        # `torch.save` raises a RuntimeError of its own on top of what the system says.
        system = next((cause for cause in causes(error) if isinstance(cause, OSError)), None)
        if system is None:
            raise
        why = system.strerror or str(system)
        raise WriteError(
            f"{path} cannot be written: {why}. Free some space, or choose a place that can be written."
        ) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and what it was raised from, or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def new_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file to be written, once it is clear that there can be such a file.

    Raises:
        WriteError: There is no folder for it, a folder has its name, or it is no path at all.
    """
    path = as_path(path)
    try:
        parent, taken = path.parent.is_dir(), path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise WriteError(f"{path} cannot be written: {error.strerror}. Choose another.") from error
    if not parent:
        raise WriteError(
            f"{path} cannot be written: there is no folder {path.parent}. Make it first."
        )
    if taken:
        raise WriteError(
            f"{path} cannot be written: it is a folder. Give the name of a file in it."
        )
    return path


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return a path, whatever kind of path it is given as.

    Raises:
        WriteError: It is none.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise WriteError(f"{path!r} is no path. Give the path of a file or folder.")
    return Path(path)


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write a file or a folder to, which the block then renames.

    Whatever still has that name at the end of the block is deleted.

    Raises:
        WriteError: It cannot be written.
    """
    aside = path.parent / f"{ASIDE}{secrets.token_hex(8)}"
    try:
        with writing(path):
            yield aside
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing it in one step.

    A file that is there keeps its permissions, and a link leads to the new file; what is no file, such
    as `/dev/stdout`, is written to.

    Raises:
        WriteError: It cannot be written; what was there is left as it was.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with writing(path), open(path, "wb") as file:
            file.write(data)
        return
    path = Path(os.path.realpath(path))
    with written_aside(path) as aside:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        # The permissions that the umask leaves; those of temporary files are for their owner alone.
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            os.chmod(aside, stat.S_IMODE(path.stat().st_mode))
        os.replace(aside, path)


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


def append_json(path: Path, data: Any) -> None:
    """Append `data` to `path` as a line of JSON, safe from a kill once this returns."""
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(to_json(data) + "\n")
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        WriteError: It cannot be made.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


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
