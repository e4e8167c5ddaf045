"""The numbers that the paper prints, from `paper.json`."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

Labels = Mapping[str, str | float]
"""What tells a number of a table from the others, such as ``{"method": "rigl", "sparsity": 0.9}``."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One number of the paper.

    Attributes:
        labels: What it is the number of.
        value: The number, on the paper's scale; accuracies are in percent.
        std: Standard deviation over the seeds, where the paper gives one.
    """

    labels: Labels
    value: float
    std: float | None


def paper_rows(table: str) -> list[PaperRow]:
    """Return the numbers of a table or figure, in the paper's order.

    Args:
        table: Its name, such as ``"table2"``.
    """
    rows = []
    for row in _data()[table]["rows"]:
        labels = {name: value for name, value in row.items() if name not in ("value", "std")}
        rows.append(PaperRow(labels=labels, value=row["value"], std=row.get("std")))
    return rows


def paper_row(table: str, **labels: str | float) -> PaperRow:
    """Return the one number of a table that has these labels and no others."""
    (row,) = (row for row in paper_rows(table) if row.labels == labels)
    return row


def source() -> str:
    """Return the reference of the paper."""
    return _data()["source"]


@functools.cache
def _data() -> dict[str, Any]:
    return json.loads(
        resources.files("isoflop.lab.reproduce").joinpath("paper.json").read_text("utf-8")
    )
