"""The paper's figures 5 and 7, from what `isoflop bench … --json` printed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import FigureError, IsoflopError
from isoflop.report.figure import COLORS, Figure, Line, Panel

Result = Mapping[str, Any]

WITHOUT = "No results of isoflop bench were given. Add --bench FILE."


def read_bench(path: str | Path) -> list[dict[str, Any]]:
    """Return the results in a file, one per sparsity.

    Raises:
        IsoflopError: It holds no results of `isoflop bench`.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IsoflopError(f"{path} cannot be read: {error}") from error
    results = data if isinstance(data, list) else [data]
    for result in results:
        if not isinstance(result, dict) or not isinstance(result.get("seconds"), dict):
            break
        workload = result.get("workload")
        if not isinstance(workload, dict) or not {"kind", "sparsity"} <= workload.keys():
            break
    else:
        if results:
            return results
    raise IsoflopError(f"{path} holds no results. Make it with isoflop bench … --out {path}.")


def relative_times(files: Iterable[Sequence[Result]]) -> list[Figure]:
    """Time of whole models relative to the dense one, over sparsity (figure 5).

    Args:
        files: The results of each file.
    """
    chosen = [results for results in files if results[0]["workload"]["kind"] != "matmul"]
    panels = []
    for results in chosen:
        lines = _lines(results, lambda result: result.get("ratio_to_dense", {}))
        if lines:
            dashed = _reference(results, "dense", lambda _: 1.0)
            panels.append(_panel(results, "Time ÷ dense model", [dashed, *lines]))
    if not panels:
        raise FigureError(WITHOUT)
    return [
        Figure(
            name="relative-times",
            title="Time relative to the dense model",
            caption="At equal FLOPs; 1 is ideal.",
            panels=panels,
            columns=2,
        )
    ]


def speed_ups(files: Iterable[Sequence[Result]]) -> list[Figure]:
    """Speed-up of a matrix product by skipping its zeros, over sparsity (figure 7)."""
    panels = []
    for results in files:
        if results[0]["workload"]["kind"] == "matmul":
            lines = _lines(results, _speed_up)
            if lines:
                ideal = _reference(results, "ideal, 1 ÷ (1 − sparsity)", lambda s: 1 / (1 - s))
                panels.append(_panel(results, "Speed-up", [ideal, *lines]))
    if not panels:
        raise FigureError(WITHOUT)
    return [
        Figure(
            name="speed-ups",
            title="Speed-up by skipping zeros",
            caption="Over PyTorch on the same layer with its zeros computed.",
            panels=panels,
            columns=2,
        )
    ]


def _speed_up(result: Result) -> dict[str, float]:
    seconds = result["seconds"]
    slow = seconds.get("masked")
    return {k: slow / v for k, v in seconds.items() if slow and v and k not in ("masked", "dense")}


def _lines(results: Sequence[Result], values: Any) -> list[Line]:
    table = {100 * r["workload"]["sparsity"]: values(r) for r in results}
    names = dict.fromkeys(name for row in table.values() for name in row if name != "dense")
    lines = []
    # Ours comes first, with the same colour in every panel.
    for index, name in enumerate(sorted(names, key=lambda name: (name != "isoflop", name))):
        points = sorted((x, row[name]) for x, row in table.items() if row.get(name) is not None)
        x, y = [x for x, _ in points], [y for _, y in points]
        if points:
            lines.append(Line(label=name, group=index, x=x, y=y, markers=True))
    return lines


def _reference(results: Sequence[Result], label: str, value: Any) -> Line:
    highest = max(result["workload"]["sparsity"] for result in results)
    places = [highest * i / 50 for i in range(51)]
    x, y = [100 * s for s in places], [value(s) for s in places]
    return Line(label=label, group=len(COLORS) - 1, x=x, y=y, dashed=True)


def _panel(results: Sequence[Result], y_label: str, marks: list[Line]) -> Panel:
    workload = results[0]["workload"]
    what = workload.get("model") or workload.get("layer") or ""
    title = f"{workload['kind']} {what}".strip()
    return Panel(title=title, x_label="Sparsity (%)", y_label=y_label, marks=marks)
