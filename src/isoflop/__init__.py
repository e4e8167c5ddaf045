"""Sparse Iso-FLOP transformations for any PyTorch model.

`transform` makes a dense model larger and sparser at equal FLOPs, `sparsify` keeps it sparse while
any training loop trains it, and `profile` counts the FLOPs.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import, which `isoflop --help` can do without.
    if name == "__all__":
        return importlib.import_module("isoflop.api").__all__
    if name.startswith("_"):
        raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
    if importlib.util.find_spec(f"isoflop.{name}") is not None:
        return importlib.import_module(f"isoflop.{name}")
    api = importlib.import_module("isoflop.api")
    if name not in api.__all__:
        raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return ["__version__", *importlib.import_module("isoflop.api").__all__]
