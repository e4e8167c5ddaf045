"""The paper's figures 5 and 7, from what `isoflop bench` measured."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import FigureError, IsoflopError
from isoflop.lab.report.figure import COLORS, Figure, Line, Panel, is_finite
from isoflop.lab.report.figures.paper_times import PAPER_TIMES

Result = Mapping[str, Any]

LOOKS: dict[str, tuple[str, int]] = {
    "masked": ("PyTorch, zeros computed", 6),
    "torch_csr": ("PyTorch CSR", 6 + len(COLORS)),
    "onnxruntime": ("ONNX Runtime", 2),
    "openvino": ("OpenVINO", 3),
    "deepsparse": ("DeepSparse", 1),
    "sparseprop": ("SparseProp", 4),
    "sparselab": ("sparselab", 5),
    "cs2": ("Cerebras CS-2", 5 + len(COLORS)),
    "dense_bf16": ("dense PyTorch, bf16", 1 + len(COLORS)),
    "dense_bf16_compiled": ("dense PyTorch, bf16, compiled", 2 + len(COLORS)),
    "isoflop_bf16": ("isoflop, bf16", len(COLORS)),
    "isoflop": ("isoflop", 0),
}
"""Label and group of each contestant, the same in every figure; later ones are drawn on top."""

WITHOUT = "No results of isoflop bench were given. Add --bench FILE."

_KEYS = {
    "inference": {"model", "input_shape"},
    "training": {"model", "input_shape"},
    "matmul": {"layer", "inputs", "outputs", "batch", "backward", "fixed_size"},
}
"""What titles need of a workload, by kind."""


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
    if not results or not all(map(_is_result, results)):
        raise IsoflopError(f"{path} holds no results. Make it with isoflop bench … --out {path}.")
    return results


def relative_times(files: Iterable[Sequence[Result]]) -> list[Figure]:
    """Time of whole models relative to the dense one, over sparsity (figure 5).

    Args:
        files: The results of each file.

    Raises:
        FigureError: There are none of whole models, or no time of a dense one.
    """
    chosen = [results for results in files if results[0]["workload"]["kind"] != "matmul"]
    panels = []
    for results in chosen:
        lines = _lines(results, lambda result: result["ratio_to_dense"])
        if lines:
            lines = [*_paper_lines(results[0]["workload"]["kind"]), *lines]
            dense = _reference(lines, "dense PyTorch", lambda _: 1.0)
            panels.append(_panel(results, "Time ÷ dense model", [dense, *lines]))
    if not panels:
        raise FigureError("No time relative to a dense model was measured." if chosen else WITHOUT)
    return [
        Figure(
            name="relative-times",
            title="Time relative to the dense model",
            caption="At equal FLOPs; 1 is ideal. Hollow: as the paper reports, on other machines.",
            panels=panels,
            columns=min(2, len(panels)),
        )
    ]


def speed_ups(files: Iterable[Sequence[Result]]) -> list[Figure]:
    """Speed-up of a matrix product by skipping its zeros, over sparsity (figure 7).

    It is the time of PyTorch on the same layer with its zeros computed (`masked`) over that of the
    contestant.

    Args:
        files: The results of each file.

    Raises:
        FigureError: There are none of single layers, or none with `masked`.
    """
    chosen = [results for results in files if results[0]["workload"]["kind"] == "matmul"]
    panels = []
    for results in chosen:
        lines = _lines(results, _speed_up)
        if lines:
            ideal = _reference(lines, "ideal, 1 ÷ (1 − sparsity)", lambda s: 1 / (1 - s))
            panels.append(_panel(results, "Speed-up over computing zeros", [ideal, *lines]))
    if not panels:
        raise FigureError(
            "The speed-up is relative to the contestant 'masked'; do not --skip it."
            if chosen
            else WITHOUT
        )
    return [
        Figure(
            name="speed-ups",
            title="Speed-up by skipping zeros",
            caption="Over PyTorch on the same layer with its zeros computed.",
            panels=panels,
            columns=min(2, len(panels)),
        )
    ]


def _is_result(result: Any) -> bool:
    parts = ("workload", "machine", "seconds", "ratio_to_dense")
    if not isinstance(result, dict):
        return False
    if not all(isinstance(result.get(part), dict) for part in parts):
        return False
    workload = result["workload"]
    keys = _KEYS.get(str(workload.get("kind")))
    return (
        keys is not None
        and keys | {"sparsity", "threads"} <= workload.keys()
        and "cpu" in result["machine"]
    )


def _speed_up(result: Result) -> dict[str, float]:
    seconds = result["seconds"]
    slow = seconds.get("masked")
    return {k: slow / v for k, v in seconds.items() if k != "masked" and v} if slow else {}


def _lines(
    results: Sequence[Result], values: Callable[[Result], Mapping[str, float]]
) -> list[Line]:
    table = {100 * r["workload"]["sparsity"]: values(r) for r in results}
    lines = []
    for name, (label, group) in LOOKS.items():
        known = ((x, row.get(name)) for x, row in table.items())
        points = sorted((x, y) for x, y in known if y is not None and is_finite(x, y) and y > 0)
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Line(label=label, group=group, x=x, y=y, markers=True))
    return lines


def _paper_lines(kind: str) -> list[Line]:
    lines = []
    for name, times in PAPER_TIMES[kind].items():
        label, group = LOOKS[name]
        lines.append(
            Line(
                label=f"paper: {label}",
                group=group,
                x=[100 * sparsity for sparsity in times],
                y=list(times.values()),
                dashed=True,
                markers=True,
                hollow=True,
            )
        )
    return lines


def _reference(lines: Sequence[Line], label: str, value: Callable[[float], float]) -> Line:
    highest = max(x for line in lines for x in line.x)
    x = [highest * i / 50 for i in range(51)]
    y = [value(percent / 100) for percent in x]
    return Line(label=label, group=len(COLORS) - 1, x=x, y=y, dashed=True)


def _panel(results: Sequence[Result], y_label: str, marks: list[Line]) -> Panel:
    return Panel(
        title=_title(results[0]),
        x_label="Sparsity (%)",
        y_label=y_label,
        marks=marks,
        y_log=True,
    )


def _title(result: Result) -> str:
    """Return what was measured, and where."""
    workload = result["workload"]
    if workload["kind"] == "matmul":
        what = (
            f"{workload['layer']} {workload['inputs']} → {workload['outputs']}, "
            f"{'same size' if workload['fixed_size'] else 'widened'}, "
            f"{'forward and backward' if workload['backward'] else 'forward'}, "
            f"batch {workload['batch']}"
        )
    else:
        kind = "Inference" if workload["kind"] == "inference" else "Training step"
        what = f"{kind}: {workload['model']}, {'×'.join(map(str, workload['input_shape']))}"
    threads = workload["threads"]
    plural = "" if threads == 1 else "s"
    return f"{what}, {threads}\N{NO-BREAK SPACE}thread{plural}, {result['machine']['cpu']}"
