"""Tables as aligned text."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Return rows of text with their columns aligned, a line for each.

    Args:
        rows: The cells; all rows have equally many.
        left: Columns to align to the left, by index from 0 (or from the end, if negative); the others
            are aligned to the right.
    """
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    to_left = {index % len(widths) for index in left}
    return [
        "  ".join(
            cell.ljust(width) if index in to_left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
