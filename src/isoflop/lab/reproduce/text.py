"""Tables as text and as Markdown."""

from collections.abc import Mapping
from typing import Any

from isoflop.lab.reproduce.selection import label_text
from isoflop.text import aligned

NUMBERS = (
    "mean", "std", "seeds", "seeds_wanted", "paper", "paper_std", "difference", "note", "deviation",
    "results",
)  # fmt: skip
"""What a row has beside its labels."""


def format_table(table: Mapping[str, Any]) -> str:
    """Return a table as aligned text, its setting above it and what failed below."""
    lines = cells(table)
    rows = aligned(lines, left=(*range(len(lines[0]) - len(_COLUMNS)), -1))
    return "\n".join([table["title"], *setting_lines(table), "", *rows, *failures(table)])


def format_markdown(table: Mapping[str, Any]) -> str:
    """Return a table as Markdown."""
    head, *lines = cells(table)
    labels = len(head) - len(_COLUMNS)
    rule = ["---" if i < labels or i == len(head) - 1 else "---:" for i in range(len(head))]
    rows = [f"| {' | '.join(line)} |" for line in (head, rule, *lines)]
    above = "\n".join(setting_lines(table))
    below = "".join(f"\n{line}" for line in failures(table))
    return f"## {table['title']}\n\n{above}\n\n" + "\n".join(rows) + f"\n{below}"


_COLUMNS = ("ours", "seeds", "paper", "difference", "note")


def cells(table: Mapping[str, Any]) -> list[list[str]]:
    """Return the head and the rows of a table as text."""
    rows = table["rows"]
    labels = list(dict.fromkeys(name for row in rows for name in row if name not in NUMBERS))
    digits = 2 if all(_small(row[key]) for row in rows for key in ("mean", "paper")) else None
    head = [*labels, f"ours, {table['unit']}", *_COLUMNS[1:]]
    lines = [head]
    for row in rows:
        wanted, got = row["seeds_wanted"], row["seeds"]
        lines.append(
            [
                *(label_text(row[name]) if name in row else "" for name in labels),
                _number(row["mean"], row["std"], digits) or "–",
                str(got) if got == wanted else f"{got} of {wanted}",
                _number(row["paper"], row["paper_std"], digits) or "–",
                _difference(row["difference"], digits),
                row["note"],
            ]
        )
    return lines


def setting_lines(table: Mapping[str, Any]) -> list[str]:
    """Return what is said of the setting above a table."""
    if table["paper_setting"]:
        return [f"Preset {table['preset']}: the paper's setting."]
    return [
        f"Preset {table['preset']}, NOT the paper's setting. The paper's numbers are of another task, "
        "model or length of training; differences to them say nothing of either.",
        f"Here: {table['setting']}.",
    ]


def failures(table: Mapping[str, Any]) -> list[str]:
    """Return a line for every unit of work that failed."""
    return [f"failed: {item['run']}: {item['error']}" for item in table["failed"]]


def _small(value: float | None) -> bool:
    return value is None or abs(value) < 1000


def _number(value: float | None, std: float | None, digits: int | None) -> str:
    if value is None:
        return ""
    text = _digits(value, digits)
    return text if std is None else f"{text} ± {_digits(std, digits)}"


def _digits(value: float, digits: int | None) -> str:
    return f"{value:,g}" if digits is None else f"{value:.{digits}f}"


def _difference(value: float | None, digits: int | None) -> str:
    if value is None:
        return ""
    return f"{value:+,g}" if digits is None else f"{value:+.{digits}f}"
