"""The paper's figures 5 and 7 from results of benchmarks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.bench.paper import RELATIVE_TIMES
from isoflop.errors import IsoflopError
from isoflop.models.extras import require

# Okabe and Ito's palette, which the colour-blind can tell apart; markers differ too. A contestant
# looks the same in every figure.
STYLES: dict[str, tuple[str, str, str]] = {
    "isoflop": ("isoflop", "#0072B2", "o"),
    "masked": ("PyTorch, zeros computed", "#000000", "s"),
    "torch_csr": ("PyTorch CSR", "#F0E442", "X"),
    "onnxruntime": ("ONNX Runtime", "#009E73", "D"),
    "openvino": ("OpenVINO", "#CC79A7", "^"),
    "deepsparse": ("DeepSparse", "#D55E00", "v"),
    "sparseprop": ("SparseProp", "#E69F00", "P"),
    "sparselab": ("sparselab", "#56B4E9", "*"),
}
"""Label, colour and marker by contestant."""

PAPER = ("#888888", ("h", "8"))
"""Colour and markers of the paper's figures."""


def plot_relative_time(results: Sequence[dict[str, Any]], out: str | Path) -> None:
    """Draw time relative to the dense model over sparsity (paper, figure 5), and save the figure.

    Args:
        results: Results of one workload at several sparsities, as `run_bench` returned them.
        out: Where to save; the suffix decides the format (`.png`, `.pdf`, `.svg`).

    Raises:
        IsoflopError: Nothing was measured relative to a dense model.
    """
    kind = results[0]["workload"]["kind"]
    series = _series(results, lambda result, name: result["ratio_to_dense"].get(name))
    if not series:
        raise IsoflopError("There is no time relative to a dense model to draw.")
    figure, axes = _axes(results)
    axes.axhline(1.0, color="#888888", linewidth=1.0, linestyle="--", label="dense PyTorch")
    _draw(axes, series)
    for (name, times), marker in zip(RELATIVE_TIMES.get(kind, {}).items(), PAPER[1], strict=False):
        axes.plot(
            [100 * sparsity for sparsity in times],
            list(times.values()),
            color=PAPER[0],
            marker=marker,
            markerfacecolor="none",
            markersize=8,
            linestyle=":" if len(times) > 1 else "none",
            label=name,
        )
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    axes.set_ylabel("Time ÷ dense model (log scale; 1 is ideal)")
    _save(figure, out)


def plot_speedup(results: Sequence[dict[str, Any]], out: str | Path) -> None:
    """Draw the speed-up by skipping zeros over sparsity (paper, figure 7), and save the figure.

    The speed-up is the time of PyTorch on the same layer with its zeros computed (`masked`) over
    that of the contestant; ideal is 1 / (1 - sparsity).

    Args:
        results: Results of one layer at several sparsities, as `run_bench` returned them.
        out: Where to save; the suffix decides the format (`.png`, `.pdf`, `.svg`).

    Raises:
        IsoflopError: The contestant `masked` was not measured.
    """

    def speedup(result: dict[str, Any], name: str) -> float | None:
        seconds = result["seconds"]
        if name == "masked" or name not in seconds or "masked" not in seconds:
            return None
        return seconds["masked"] / seconds[name]

    series = _series(results, speedup)
    if not series:
        raise IsoflopError("The speed-up is relative to the contestant 'masked'; do not --skip it.")
    figure, axes = _axes(results)
    highest = max(result["workload"]["sparsity"] for result in results)
    sparsities = np.linspace(0.0, highest, 200)
    axes.plot(
        100 * sparsities,
        1 / (1 - sparsities),
        color="#888888",
        linewidth=1.0,
        linestyle="--",
        label="ideal, 1 / (1 − sparsity)",
    )
    _draw(axes, series)
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    axes.set_ylabel("Speed-up over computing the zeros (log scale)")
    _save(figure, out)


def _series(results: Sequence[dict[str, Any]], value: Any) -> dict[str, list[tuple[float, float]]]:
    """Return (sparsity in percent, value) by contestant, where there is a value."""
    series = {}
    for name in STYLES:
        points = [(100 * r["workload"]["sparsity"], value(r, name)) for r in results]
        points = sorted(point for point in points if point[1] is not None)
        if points:
            series[name] = points
    return series


def _axes(results: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    figure_class = require("matplotlib.figure", "train").Figure
    # Without pyplot there is no global state and no need for a display.
    figure = figure_class(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    sparsities = sorted({100 * result["workload"]["sparsity"] for result in results})
    axes.set_xticks(sparsities, [f"{sparsity:g}" for sparsity in sparsities])
    axes.set_xlabel("Sparsity (%)")
    axes.set_title(_title(results[0]), fontsize=11)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _draw(axes: Any, series: dict[str, list[tuple[float, float]]]) -> None:
    for name, points in series.items():
        label, color, marker = STYLES[name]
        x, y = zip(*points, strict=True)
        # What is ours lies above the others.
        axes.plot(
            x,
            y,
            color=color,
            marker=marker,
            markersize=7,
            label=label,
            zorder=3 - (name != "isoflop"),
        )


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers."""
    ticker = require("matplotlib.ticker", "train")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _position: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _title(result: dict[str, Any]) -> str:
    workload = result["workload"]
    if workload["kind"] == "matmul":
        sizes = "same size" if workload["fixed_size"] else "widened"
        passes = "forward and backward" if workload["backward"] else "forward"
        what = (
            f"{workload['layer']} {workload['inputs']} → {workload['outputs']}, {sizes}, {passes}"
        )
        what += f", batch {workload['batch']}"
    else:
        kind = "Inference" if workload["kind"] == "inference" else "Training step"
        what = f"{kind}: {workload['model']}, {'×'.join(map(str, workload['input_shape']))}"
    return f"{what}, {workload['threads']} threads\n{result['machine']['cpu']}"


def _save(figure: Any, out: str | Path) -> None:
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(Path(out), dpi=200)
