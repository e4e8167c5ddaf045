"""The names of what is registered."""

import fnmatch

from isoflop.methods import METHODS
from isoflop.patterns import PATTERNS
from isoflop.registry import Registry
from isoflop.transforms import TRANSFORMS


def list_transforms(filter: str = "*") -> list[str]:
    """Return the names of the transforms that match a glob such as ``"*wide*"``."""
    return _names(TRANSFORMS, filter)


def list_methods(filter: str = "*") -> list[str]:
    """Return the names of the sparse training methods that match a glob such as ``"*snip*"``."""
    return _names(METHODS, filter)


def list_patterns(filter: str = "*") -> list[str]:
    """Return the names of the sparsity patterns that match a glob such as ``"*m"``."""
    return _names(PATTERNS, filter)


def _names(registry: Registry, filter: str) -> list[str]:
    return fnmatch.filter(registry.names(), filter)
