"""What each layer runs on: the fastest of its contestants, measured, or what was chosen elsewhere."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError
from isoflop.kernels.autotune.calls import Call
from isoflop.kernels.autotune.contestants import Mode
from isoflop.kernels.autotune.timing import TimingCache, synchronize
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.cpu.layout import from_batch_innermost, to_batch_innermost
from isoflop.kernels.cpu.library import fingerprint, isa
from isoflop.kernels.cpu.variants import VARIANTS
from isoflop.kernels.semi_structured import (
    compute_dtype,
)
from isoflop.processor import processor_name


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """What was measured of one layer.

    Attributes:
        path: Where the layer is.
        shape: Shape of its weight.
        nnz: Its non-zeros.
        inputs: Shapes of its inputs.
        seconds: Time of the ``"dense"`` and of the ``"sparse"`` layer, and of the other variants that
            were allowed, such as ``"sparse_bfloat16"``, for all its calls; forward, and backward too
            for training. Empty if nothing was measured.
        conversions: For convolutions, the time of bringing the input into the layout of dense and of
            sparse layers.
        chosen: The fastest.
    """

    path: str
    shape: tuple[int, ...]
    nnz: int
    inputs: tuple[tuple[int, ...], ...]
    seconds: dict[str, float]
    conversions: dict[str, float]
    chosen: str


def choose_backends(
    calls: Sequence[Call],
    contestants: Mapping[str, dict[str, nn.Module]],
    mode: Mode,
    kept: TimingCache,
) -> dict[str, LayerChoice]:
    """Measure every contestant that was called, and choose."""
    common = circumstances(calls, mode)
    seconds: dict[str, dict[str, float]] = {}
    conversions: dict[str, dict[str, float]] = {}
    for call in calls:
        if call.is_conv:
            what = {"conversion": call.shapes[0], "layout": call.layout, **common}
            times = kept.times(what, _conversion_runs(call, mode))
            if mode == "training":  # the gradient takes the opposite way
                times = dict.fromkeys(times, sum(times.values()))
            conversions[call.path] = times
        if call.path in contestants:
            modules = contestants[call.path]
            times = kept.times(
                {**_description(call, modules), **common}, _runs(call, modules, mode)
            )
            seconds[call.path] = {name: call.count * time for name, time in times.items()}
    convs = [call.path for call in calls if call.is_conv]
    cheapest = dict(zip(convs, _cheapest(convs, seconds, conversions), strict=True))
    chosen: dict[str, str] = {
        path: cheapest.get(path) or min(times, key=times.__getitem__)
        for path, times in seconds.items()
    }
    return _layer_choices(calls, contestants, chosen, seconds, conversions)


def given_backends(
    calls: Sequence[Call],
    contestants: Mapping[str, dict[str, nn.Module]],
    chosen: Mapping[str, str],
) -> dict[str, LayerChoice]:
    """Return what was chosen elsewhere for the contestants that were called; nothing is a choice too.

    Raises:
        IsoflopError: The choices are of another model.
    """
    if not chosen:
        return {}
    called = {call.path for call in calls if call.path in contestants}
    odd = {*called - chosen.keys(), *chosen.keys() - contestants.keys()}
    odd |= {path for path, name in chosen.items() if name not in contestants.get(path, {})}
    if odd:
        raise IsoflopError(
            f"The choices are not of this model: see {min(odd)}. Pass the `choices` of a report "
            "on a model of the same layers, or leave them out."
        )
    return _layer_choices(calls, contestants, chosen, {}, {})


def circumstances(calls: Sequence[Call], mode: Mode) -> dict[str, Any]:
    """Return what times depend on beside layers and shapes."""
    versions = {"torch": torch.__version__, "isoflop": metadata.version("isoflop")}
    device = calls[0].inputs[0].device if calls else torch.device("cpu")
    autocast = torch.is_autocast_enabled(device.type) and str(torch.get_autocast_dtype(device.type))
    return {"mode": mode, "autocast": autocast, **versions, **_machine(device)}


def _layer_choices(
    calls: Sequence[Call],
    contestants: Mapping[str, dict[str, nn.Module]],
    chosen: Mapping[str, str],
    seconds: Mapping[str, dict[str, float]],
    conversions: Mapping[str, dict[str, float]],
) -> dict[str, LayerChoice]:
    layers: dict[str, LayerChoice] = {}
    for call in calls:
        if call.path in contestants:
            shape, nnz = _size(contestants[call.path])
            layers[call.path] = LayerChoice(
                path=call.path,
                shape=shape,
                nnz=nnz,
                inputs=call.shapes,
                seconds=seconds.get(call.path, {}),
                conversions=conversions.get(call.path, {}),
                chosen=chosen[call.path],
            )
    return layers


def layout_of(backend: str) -> str:
    """Return which layers have the layout in which convolutions of a backend want activations."""
    return "sparse" if VARIANTS[backend].batch_innermost else "dense"


def _cheapest(
    convs: Sequence[str],
    seconds: Mapping[str, Mapping[str, float]],
    conversions: Mapping[str, Mapping[str, float]],
) -> tuple[str, ...]:
    """Return the choices that are fastest together, for convolutions that follow one another.

    Where a dense convolution follows a sparse one, or the other way round, the activations between
    them are converted.
    """
    best: dict[str, tuple[float, tuple[str, ...]]] = {"dense": (0.0, ())}
    for path in convs:
        best = {
            choice: min(
                (
                    total + cost + _conversion(conversions[path], last, choice),
                    (*choices, choice),
                )
                for last, (total, choices) in best.items()
            )
            for choice, cost in seconds.get(path, {"dense": 0.0}).items()
        }
    return min(best.values())[1]


def _conversion(times: Mapping[str, float], last: str, following: str) -> float:
    layout = layout_of(following)
    return 0.0 if layout_of(last) == layout else times[layout]


def _machine(device: torch.device) -> dict[str, Any]:
    precision = {"precision": torch.get_float32_matmul_precision()}
    if device.type == "cuda":
        return {"gpu": torch.cuda.get_device_name(device), **precision}
    return {
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "isa": isa(),
        "kernels": fingerprint(),
        **precision,
    }


def _size(modules: Mapping[str, nn.Module]) -> tuple[tuple[int, ...], int]:
    """Return shape and non-zeros of the weight."""
    sparse = modules["sparse"]
    if isinstance(sparse, SparseLayer):
        return sparse.index.shape, sparse.nnz
    weight = modules["dense"].get_parameter("weight")
    return tuple(weight.shape), weight.numel() // 2


def _description(call: Call, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return everything about a layer and its call that its times depend on."""
    sparse, dense = modules["sparse"], modules["dense"]
    call_alone = {
        "inputs": call.shapes,
        "layout": call.layout,
        "dtype": str(call.inputs[0].dtype),
    }
    if not isinstance(sparse, SparseLayer):
        weight = dense.get_parameter("weight")
        return {
            "layer": f"2:4 {type(dense).__name__}",
            "shape": tuple(weight.shape),
            "bias": dense._parameters.get("bias") is not None,
            "weight": str(weight.dtype),
            "computes": str(compute_dtype(weight)),
            **call_alone,
        }
    options = ("stride", "padding", "dilation")
    return {
        "layer": type(sparse).__name__,
        "shape": sparse.index.shape,
        "groups": sparse.index.groups,
        "rows": sparse.index.rows,
        "nnz": sparse.nnz,
        "activation": sparse.activation,
        "bias": sparse.bias is not None,
        **call_alone,
        **{name: getattr(sparse, name) for name in options if hasattr(sparse, name)},
    }


def _runs(
    call: Call, modules: Mapping[str, nn.Module], mode: Mode
) -> dict[str, Callable[[], object]]:
    run = _forward if mode == "inference" else _forward_and_backward
    return {
        name: functools.partial(
            run, module, call.make_inputs(innermost=VARIANTS[name].batch_innermost)
        )
        for name, module in modules.items()
    }


def _conversion_runs(call: Call, mode: Mode) -> dict[str, Callable[[], object]]:
    x, innermost = call.make_inputs(innermost=False)[0], call.make_inputs(innermost=True)[0]
    return {
        "sparse": lambda: to_batch_innermost(x),
        "dense": lambda: from_batch_innermost(innermost),
    }


@torch.no_grad()
def _forward(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    module(*inputs)
    synchronize(inputs[0].device)


def _forward_and_backward(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    inputs = [x.requires_grad_() for x in inputs]
    y = module(*inputs)
    wanted = [*inputs, *(p for p in module.parameters() if p.requires_grad)]
    torch.autograd.grad(y, wanted, torch.ones_like(y))
    synchronize(y.device)
