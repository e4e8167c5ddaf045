"""Which layers are drawn where there are too many for all."""

from collections.abc import Sequence

LARGEST = 24


def spread(names: Sequence[str]) -> list[str]:
    """Return the names, or so many of them, evenly spread, that a figure can hold."""
    if len(names) <= LARGEST:
        return list(names)
    return [names[round(i * (len(names) - 1) / (LARGEST - 1))] for i in range(LARGEST)]


def note(names: Sequence[str]) -> str:
    """Return what a caption must say of layers that are left out."""
    return f" {LARGEST} of {len(names)} layers are shown." if len(names) > LARGEST else ""
