"""The file of results, which a later survey of the same versions and options goes on with."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import isoflop
from isoflop.errors import RunDirectoryError
from isoflop.files import read_json, write_json

FORMAT_VERSION = 1
LIBRARIES = ("torch", "timm", "torchvision", "transformers")

_NO_PART = {"io", "lab"}
"""Rooms of the library on which no result depends."""


def versions() -> dict[str, str]:
    """Return the versions of all that a result depends on; `source` is a digest of isoflop's."""
    found = {"isoflop": importlib.metadata.version("isoflop"), "source": _digest()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "none"
    return found | {"python": platform.python_version()}


def load(path: Path | None, versions: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the results in a file by model, if they were made with these versions and settings.

    Timeouts are left out, as the limit or the load may be another one now.

    Raises:
        RunDirectoryError: The file is something else, which results must not replace.
    """
    if path is None or not path.exists():
        return {}
    data = read_json(path)
    if "format_version" not in data:
        raise RunDirectoryError(f"{path} holds no results of tools.zoo. Choose another --out.")
    same = (FORMAT_VERSION, versions, settings)
    if (data.get("format_version"), data.get("versions"), data.get("settings")) != same:
        return {}
    return {r["spec"]: r for r in data["results"] if r.get("error") != "Timeout"}


def save(path: Path | None, outcome: dict[str, Any]) -> None:
    """Write an outcome, if there is a file for it."""
    if path is not None:
        write_json(path, outcome)


def _digest() -> str:
    root = Path(isoflop.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if name.partition("/")[0] not in _NO_PART:
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
