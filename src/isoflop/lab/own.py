"""Modules of one's own, which register methods, models, data sets and more when imported."""

import importlib
from collections.abc import Iterable

from isoflop.errors import IsoflopError

_imported: dict[str, None] = {}


def import_modules(names: Iterable[str]) -> None:
    """Import modules by name, here and in all processes that are started from here.

    Raises:
        IsoflopError: A module is missing, or cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise IsoflopError(
                f"--import {name}: {type(error).__name__}: {error}. Modules are looked for in the "
                "working directory and on PYTHONPATH, by names such as my_methods or package.module."
            ) from error
        _imported[name] = None


def imported_modules() -> tuple[str, ...]:
    """Return the names of the modules that `import_modules` has imported."""
    return tuple(_imported)
