"""The paper's figure 4: two spectral measures at a time, coloured by accuracy."""

from collections.abc import Sequence

from isoflop.errors import FigureError
from isoflop.lab.metrics import Metric
from isoflop.lab.report.figure import COLORS, Figure, Line, Panel, Points, is_finite
from isoflop.lab.report.figures.measures import NAMES, WITHOUT
from isoflop.lab.report.figures.registry import FIGURES
from isoflop.lab.report.runs import Group
from isoflop.lab.report.spectra import epochs_with_spectra

_PAIRS = (("ramanujan_gap", "spectral_gap"), ("imdb", "imsg"))


@FIGURES.register("measures-pareto")
def pareto_of_measures(groups: Sequence[Group]) -> list[Figure]:
    """Connectivity against weighted spectral gap, coloured by results, with the Pareto front."""
    panels: dict[Metric, list[Panel]] = {}
    for task in dict.fromkeys(group.task for group in groups):
        own = [group for group in groups if group.task == task]
        for pair in _PAIRS:
            panel = _panel(task, own, pair)
            if panel is not None:
                panels.setdefault(own[0].metric, []).append(panel)
    if not panels:
        raise FigureError(WITHOUT)
    # The colours of a figure have one scale, so tasks of different measures have figures of their own.
    return [
        Figure(
            name="measures-pareto" + ("" if len(panels) == 1 else f"-{metric.name}"),
            title=f"Spectral measures, coloured by {metric.name}",
            caption="One point per epoch and seed; a marker per model. The dashed line is the Pareto "
            "front: no point has more of both measures.",
            panels=own,
            columns=2,
            value_label=metric.label,
        )
        for metric, own in panels.items()
    ]


def _panel(task: str, groups: Sequence[Group], pair: tuple[str, str]) -> Panel | None:
    marks, everything = [], []
    for group in groups:
        points = [
            (x, y, point.score)
            for run in group.runs
            for point in epochs_with_spectra(run)
            if is_finite(x := point.measures[pair[0]], y := point.measures[pair[1]], point.score)
        ]
        if points:
            x, y, scores = (list(column) for column in zip(*points, strict=True))
            marks.append(Points(label=group.label, group=group.index, x=x, y=y, values=scores))
            everything += [point[:2] for point in points]
    if not marks:
        return None
    front = pareto_front(everything)
    x, y = [x for x, _ in front], [y for _, y in front]
    marks.append(Line(label="Pareto front", group=len(COLORS) - 1, x=x, y=y, dashed=True))
    return Panel(title=task, x_label=NAMES[pair[0]], y_label=NAMES[pair[1]], marks=marks)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one exceeds in one coordinate without less of the other."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]
