"""Parts of a table."""

from collections.abc import Sequence

from isoflop.errors import IsoflopError
from isoflop.reproduce.grid import Row


def select_rows(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """Return the rows with given labels.

    Args:
        rows: The rows.
        only: Texts such as ``method=rigl``. Of several values of a label any is right; all labels
            must be.

    Raises:
        IsoflopError: A text means nothing, there is no such label, or no row is left.
    """
    wanted: dict[str, list[str]] = {}
    known = list(dict.fromkeys(name for row in rows for name in row.labels))
    for text in only:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise IsoflopError(
                f"--only {text!r} chooses nothing. Write LABEL=VALUE, with a label of this table: "
                f"{', '.join(known)}."
            )
        values = list(dict.fromkeys(label_text(r.labels[name]) for r in rows if name in r.labels))
        value = _as_label(value)
        if value not in values:
            raise IsoflopError(
                f"No row of this table has {text}. Values of {name}: {', '.join(values)}."
            )
        wanted.setdefault(name, []).append(value)
    chosen = [
        row
        for row in rows
        if all(
            name in row.labels and label_text(row.labels[name]) in values
            for name, values in wanted.items()
        )
    ]
    if not chosen:
        raise IsoflopError(f"No row of this table has {' and '.join(only)}.")
    return chosen


def label_text(value: str | float) -> str:
    """Return a label as text, numbers in their shortest form."""
    return value if isinstance(value, str) else f"{value:g}"


def _as_label(text: str) -> str:
    try:
        return label_text(float(text))
    except ValueError:
        return text
