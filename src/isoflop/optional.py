"""Imports of optional libraries, with an error that says how to get them."""

import importlib
from types import ModuleType

from isoflop.errors import IsoflopError


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import `module`.

    Args:
        module: Full name of the module.
        extra: The extra of isoflop that installs it; None where no extra does.

    Raises:
        IsoflopError: It is not installed; the message says what to install.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise
        command = f"pip install 'isoflop[{extra}]'" if extra else f"pip install {library}"
        raise IsoflopError(f"This needs {library}, which is not installed: {command}") from error
