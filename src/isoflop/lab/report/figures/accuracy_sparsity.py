"""The paper's figure 3: accuracy against sparsity."""

from collections.abc import Callable, Sequence
from typing import Any

from isoflop.errors import FigureError
from isoflop.lab.report.figure import Figure, Line, Panel, Points
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.runs import Group, method_name
from isoflop.lab.report.table import drawable, left_out, rows_of

Row = dict[str, Any]


@FIGURES.register("accuracy-sparsity")
def accuracy_against_sparsity(groups: Sequence[Group]) -> list[Figure]:
    """Accuracy against sparsity: families, structured against unstructured, sparse against dense."""
    everything = rows_of(groups)
    sparse = [row for row in everything if row["sparsity"]]
    if not sparse:
        raise FigureError("No complete run is sparse.")
    drawn = [row for row in everything if drawable(row)]
    rows = [row for row in sparse if row in drawn]
    if not rows:
        raise FigureError("No complete sparse run has a finite result.")
    panels = []
    for task in dict.fromkeys(row["recipe"] for row in rows):
        own = [row for row in rows if row["recipe"] == task]
        dense = [row for row in drawn if _is_dense(row) and row["recipe"] == task]
        for title, chosen in _comparisons(own).items():
            if chosen:
                panels.append(_panel(f"{task}: {title}", chosen, dense))
    return [
        Figure(
            name="accuracy-sparsity",
            title="Accuracy against sparsity",
            caption="Means over seeds; error bars are the standard deviation. Every sparse model "
            "costs the FLOPs of the dense one at 0, except those without a transform."
            f"{left_out(everything, drawn)}",
            panels=panels,
            columns=2,
        )
    ]


def _is_dense(row: Row) -> bool:
    return row["transform"] is None and row["method"] == "dense"


def _comparisons(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each panel; those with nothing to compare are empty."""
    low_rank: Callable[[Row], bool] = lambda row: row["transform"] == "low_rank"  # noqa: E731
    sparse = [row for row in rows if row["method"] != "dense" and not low_rank(row)]
    unstructured = [row for row in sparse if row["pattern"] == "unstructured"]
    structured = [row for row in rows if low_rank(row) or row["pattern"] != "unstructured"]
    enlarged = [row for row in rows if row["method"] == "dense"]
    families = {row["transform"] for row in enlarged}
    return {
        "families and methods": unstructured,
        "structured against unstructured": [*unstructured, *structured] if structured else [],
        "sparse against dense": [
            *(row for row in unstructured if row["transform"] in families),
            *enlarged,
        ]
        if enlarged
        else [],
    }


def _panel(title: str, rows: Sequence[Row], dense: Sequence[Row]) -> Panel:
    marks = []
    for row in dense:
        error = None if row["std"] is None else [row["std"]]
        point = {"x": [0.0], "y": [row["mean"]], "error": error}
        marks.append(Points(label=row["label"], group=row["group"], **point))
    for name in dict.fromkeys(map(_name, rows)):
        own = sorted((row for row in rows if _name(row) == name), key=lambda row: row["sparsity"])
        x = [100 * row["sparsity"] for row in own]
        y = [row["mean"] for row in own]
        group = own[0]["group"]
        marks.append(Line(label=name, group=group, x=x, y=y, markers=True))
        if any(row["std"] is not None for row in own):
            error = [row["std"] or 0.0 for row in own]
            marks.append(Points(label=name, group=group, x=x, y=y, error=error))
    label = rows[0]["metric_label"]
    return Panel(title=title, x_label="Sparsity (%)", y_label=label, marks=marks)


def _name(row: Row) -> str:
    """Return the name of a line, along which only the sparsity changes."""
    method = method_name(row["method"])
    transform = row["transform"]
    family = "no transform" if transform is None else transform.replace("_", " ").title()
    pattern = "" if row["pattern"] == "unstructured" else f", {row['pattern']}"
    return f"{family}, {method}{pattern}"
