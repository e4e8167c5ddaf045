"""What a table is: its rows, each with the paper's number and where ours comes from."""

from collections.abc import Callable
from dataclasses import dataclass

from isoflop.lab.reproduce.paper import Labels, paper_rows
from isoflop.lab.reproduce.presets import Preset
from isoflop.lab.reproduce.sources import Source
from isoflop.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of a table.

    Attributes:
        labels: What it is the number of.
        source: Where ours comes from.
        paper: The paper's number, if it has one.
        paper_std: Its standard deviation, if it has one.
    """

    labels: Labels
    source: Source
    paper: float | None = None
    paper_std: float | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table or figure.

    Attributes:
        title: What it shows.
        rows: Its numbers.
        unit: What the numbers are, with their unit.
        figure: Name of the figure that `isoflop.lab.report` draws from the runs; None for none.
        seeds: Number of seeds in the paper; 1 where it gives no spread.
    """

    title: str
    rows: tuple[Row, ...]
    unit: str = "accuracy %"
    figure: str | None = "accuracy-sparsity"
    seeds: int = 3


TABLES: Registry[Callable[[Preset], Grid]] = Registry("table")
"""Functions that return the grid of a table or figure for a preset."""


def rows_of(table: str, source: Callable[[Labels], Source]) -> tuple[Row, ...]:
    """Return a row for each number of the paper.

    Args:
        table: Name of the table in `paper.json`.
        source: Maps the labels of a number to where ours comes from.
    """
    return tuple(
        Row(labels=row.labels, source=source(row.labels), paper=row.value, paper_std=row.std)
        for row in paper_rows(table)
    )
