"""Checks of the options of patterns."""

from typing import TypeGuard

from isoflop.errors import IsoflopError

LARGEST_GROUP = 64
"""Bound on M: choosing inside a group compares all pairs."""


def check_nm(n: object, m: object) -> None:
    """Raise unless N:M means something."""
    if not _is_integer(n) or not _is_integer(m) or not 1 <= n < m <= LARGEST_GROUP:
        raise IsoflopError(
            f"N:M keeps n of every m weights: use integers with 1 <= n < m <= {LARGEST_GROUP}, "
            f"such as n=2, m=4, not n={n!r}, m={m!r}."
        )


def check_block(rows: object, columns: object) -> None:
    """Raise unless rows and columns are positive integers."""
    if not _is_integer(rows) or not _is_integer(columns) or rows < 1 or columns < 1:
        raise IsoflopError(
            "A block has a positive number of rows and columns, such as rows=16, columns=16, not "
            f"rows={rows!r}, columns={columns!r}."
        )


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
