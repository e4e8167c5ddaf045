"""The folder of results: whose it is, and what lies in it.

| path | content |
| --- | --- |
| `reproduce.json` | says that the folder is one of `isoflop reproduce` |
| `runs/NAME-HASH/seedN/` | run directories, which tables share |
| `bench/` | results of `isoflop bench` |
| `TABLE.json` | the latest rows of a table |
| `TABLE.png` | its figure |
"""

from pathlib import Path

from isoflop.errors import RunDirectoryError
from isoflop.files import make_folder, read_json, write_json

MARKER = "reproduce.json"
_CONTENT = {"made_by": "isoflop reproduce", "format_version": 1}


def check_folder(folder: Path) -> None:
    """Raise unless results may be written to a folder. Writes nothing.

    Raises:
        RunDirectoryError: It is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"{folder} is a file. Choose another --out.")
    marker = folder / MARKER
    if marker.is_file():
        if read_json(marker) != _CONTENT:
            raise RunDirectoryError(
                f"{marker} is of another version of isoflop. Choose another --out."
            )
        return
    others = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if others:
        raise RunDirectoryError(
            f"{folder} holds files of something else ({', '.join(others[:3])}). Choose an empty or "
            "new folder by --out."
        )


def claim_folder(folder: Path) -> None:
    """Make the folder, if it is not there, and mark it."""
    make_folder(folder)
    if not (folder / MARKER).is_file():
        write_json(folder / MARKER, _CONTENT)
