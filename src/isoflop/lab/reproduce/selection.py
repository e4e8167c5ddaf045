"""Parts of a table."""

from collections.abc import Sequence

from isoflop.errors import IsoflopError
from isoflop.lab.reproduce.grid import Row
from isoflop.registry import did_you_mean, find_name, names_in


def select_rows(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """Return the rows with given labels.

    Args:
        rows: The rows.
        only: Texts such as ``method=rigl``. Of several values of a label any is right; all labels
            must be.

    Raises:
        IsoflopError: A text means nothing, there is no such label, or no row is left.
    """
    only = names_in(only, "only")
    wanted: dict[str, list[str]] = {}
    known = list(dict.fromkeys(name for row in rows for name in row.labels))
    for text in only:
        given, equals, value = text.partition("=")
        name = find_name(given, known)
        if not equals or name is None:
            raise IsoflopError(
                f"--only {text!r} chooses nothing.{did_you_mean(given, known)} Write LABEL=VALUE, with "
                f"a label of this table: {', '.join(known)}."
            )
        values = list(dict.fromkeys(label_text(r.labels[name]) for r in rows if name in r.labels))
        found = find_name(_as_label(value), values)
        if found is None:
            raise IsoflopError(
                f"No row of this table has {text}.{did_you_mean(value, values)} Values of {name}: "
                f"{', '.join(values)}."
            )
        wanted.setdefault(name, []).append(found)
    chosen = [
        row
        for row in rows
        if all(
            name in row.labels and label_text(row.labels[name]) in values
            for name, values in wanted.items()
        )
    ]
    if not chosen:
        raise IsoflopError(f"No row of this table has {' and '.join(names_in(only, 'only'))}.")
    return chosen


def label_text(value: str | float) -> str:
    """Return a label as text, numbers in their shortest form."""
    return value if isinstance(value, str) else f"{value:g}"


def _as_label(text: str) -> str:
    try:
        return label_text(float(text))
    except ValueError:
        return text
