"""The rows of a table, as far as there are results."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.lab.reproduce.data import DataFolders
from isoflop.lab.reproduce.grid import Row
from isoflop.lab.reproduce.sources import Computed, Evaluation, Missing, Timing, Training
from isoflop.lab.reproduce.work import Work


def works_of(row: Row, seeds: int, data: DataFolders) -> list[Work]:
    """Return the units of work that a number is the mean of; none if it needs none.

    Raises:
        IsoflopError: The recipe is unknown, or an option is invalid.
    """
    if isinstance(row.source, (Training, Evaluation)):
        return [row.source.work(seed, data) for seed in range(seeds)]
    if isinstance(row.source, Timing):
        return [row.source.work(0, data)]
    return []


def with_needs(works: Sequence[Work]) -> list[Work]:
    """Return units of work and all that they need, each once, what is needed first."""
    found: dict[str, Work] = {}

    def add(work: Work) -> None:
        for need in work.needs:
            add(need)
        found.setdefault(work.name, work)

    for work in works:
        add(work)
    return list(found.values())


def filled(
    row: Row, works: Sequence[Work], folder: Path, failed: Mapping[str, str]
) -> dict[str, Any]:
    """Return a row as plain data.

    Args:
        row: The row.
        works: Its units of work.
        folder: Where their results are.
        failed: Why units of work failed, by name.

    Returns:
        The labels; `mean`, `std` (of the sample, None for fewer than two), `seeds` (how many there
        are results of) of `seeds_wanted`; `paper`, `paper_std`, `difference` of both; `note`, why
        something is missing; `deviation`, in what the setting is not the paper's; and `results`,
        where they are, seen from the folder.
    """
    values: list[float] = []
    results: list[str] = []
    note = ""
    source = row.source
    if isinstance(source, Missing):
        note = source.reason
    elif isinstance(source, Computed):
        try:
            values.append(source.value())
        except IsoflopError as error:
            note = str(error)
    else:
        for work in works:
            try:
                result = work.result(folder)
                if result is not None:
                    values.append(source.read(result))
                    results.append(work.name)
                elif work.name in failed:
                    note = "failed"
            except IsoflopError as error:
                note = str(error)
    mean = statistics.mean(values) if values else None
    has_both = mean is not None and row.paper is not None
    return {
        **row.labels,
        "mean": mean,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
        "seeds_wanted": max(1, len(works)) if not isinstance(source, Missing) else 0,
        "paper": row.paper,
        "paper_std": row.paper_std,
        "difference": mean - row.paper if has_both else None,  # pyright: ignore
        "note": note,
        "deviation": source.deviation,
        "results": results,
    }
