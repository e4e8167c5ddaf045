"""The contest of dense PyTorch and the sparse products for each layer of a model."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import IsoflopError
from isoflop.kernels.autotune.candidates import sparse_candidates, sparse_layer, why_dense
from isoflop.kernels.autotune.inputs import Inputs, running
from isoflop.kernels.autotune.timing import TimingCache, synchronize
from isoflop.kernels.cpu.functional import ACTIVATIONS
from isoflop.kernels.cpu.layers import SparseConv2d, SparseLayer
from isoflop.kernels.cpu.layout import from_batch_innermost, to_batch_innermost
from isoflop.kernels.cpu.library import fingerprint, isa
from isoflop.kernels.cpu.variants import VARIANTS, Variant
from isoflop.kernels.semi_structured import (
    Packing,
    SemiStructuredLinear,
    compute_dtype,
    disable,
    enable,
    why_not,
)
from isoflop.masks import get_mask, named_masks, remove_mask
from isoflop.processor import processor_name
from isoflop.surgery import recast

Mode = Literal["inference", "training"]

Contestants = dict[str, dict[str, nn.Module]]
"""What each layer can be, by path and by what it computes with."""

_MANY_ZEROS = 0.25
"""Part of a weight that is zero in sparse layers only: no initialisation draws so many zeros."""

_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu_,
    "silu": functools.partial(F.silu, inplace=True),
}


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


class WithEpilogue(nn.Module):
    """A dense layer in the place of a sparse one that has an epilogue.

    Args:
        layer: The layer.
        activation: A name in `isoflop.kernels.ACTIVATIONS`.
    """

    def __init__(self, layer: nn.Module, activation: str) -> None:
        super().__init__()
        self.layer = layer
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the layer, add the residual, apply the activation."""
        y = self.layer(input)
        if residual is not None:
            y += residual
        return _IN_PLACE.get(self.activation, ACTIVATIONS[self.activation])(y)


@dataclass
class Call:
    """How a layer was called first, and how often in all."""

    path: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    count: int = 1

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution of batches of images."""
        kinds = (nn.Conv2d, SparseConv2d)
        return isinstance(self.module, kinds) and self.inputs[0].ndim == 4

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the inputs."""
        return tuple(tuple(x.shape) for x in self.inputs)

    @property
    def layout(self) -> str:
        """The layout in which dense layers have the input."""
        x = self.inputs[0]
        if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            return "channels_last"
        return "contiguous"

    def make_inputs(self, *, innermost: bool) -> list[Tensor]:
        """Return random inputs, with the batch innermost or in the layout of dense layers."""
        made = []
        for like in self.inputs:
            x = torch.randn(like.shape, device=like.device).to(like.dtype)
            if self.is_conv and innermost:
                x = to_batch_innermost(x)
            elif self.is_conv and self.layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            made.append(x.detach())
        return made


def find_contestants(
    model: nn.Module, inputs: Inputs, mode: Mode, variants: Sequence[Variant]
) -> tuple[Contestants, dict[str, str]]:
    """Return what each layer can be, by path: itself, or what could take its place.

    Args:
        model: The model; for inference, its masks are removed.
        inputs: What it takes.
        mode: What is measured.
        variants: What sparse layers may run on.

    Returns:
        The contestants, and why other layers with zeros cannot run on the kernels, by path.
    """
    found: Contestants = {}
    skipped: dict[str, str] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, SparseLayer) and mode == "training":
            # Views of the layer, for measuring only.
            dense, sparse = recast(layer, type(layer)), recast(layer, type(layer))
            dense.backend, sparse.backend = "dense", "sparse"
            found[path] = {"dense": dense, "sparse": sparse}
        elif isinstance(layer, SparseLayer):
            dense = WithEpilogue(layer.to_dense().requires_grad_(False), layer.activation)
            found[path] = {"dense": dense, "sparse": layer}
        if isinstance(layer, SparseLayer) and layer.values.dtype is not torch.float32:
            skipped[path] = _wrong_type(layer.values)
    if mode == "inference":
        candidates = sparse_candidates(model, inputs)
        skipped |= candidates.skipped
        for path, layer in candidates.layers.items():
            weight, mask = layer.get_parameter("weight"), get_mask(layer)
            assert mask is not None
            if weight.dtype is torch.float32:
                sparse = sparse_layer(layer, mask).requires_grad_(False)
                remove_mask(layer)
                found[path] = {"dense": layer, "sparse": sparse}
            else:
                skipped[path] = _wrong_type(weight)
        skipped = _layers_with_zeros(model, found) | skipped
    else:
        for name, module, parameter, _ in named_masks(model):
            reason = why_dense(module, parameter) or (
                "is masked, and only compressed layers train on the kernels: see "
                "isoflop.sparsify(storage='compressed')"
            )
            skipped[name.rpartition(".")[0] if parameter == "weight" else name] = reason
    if found and mode == "inference":
        # Dense convolutions between sparse ones: their own layout costs two conversions.
        for path, layer in model.named_modules():
            if type(layer) is not nn.Conv2d or why_dense(layer) is not None:
                continue
            weight = layer.get_parameter("weight")
            if weight.dtype is torch.float32 and path not in found:
                sparse = sparse_layer(layer, torch.ones_like(weight, dtype=torch.bool))
                found[path] = {"dense": layer, "sparse": sparse.requires_grad_(False)}
    for modules in found.values():
        sparse = modules["sparse"]
        assert isinstance(sparse, SparseLayer)
        for variant in variants:
            if variant.name not in modules and variant.takes(sparse.index):
                # A view of the layer.
                other = recast(sparse, type(sparse))
                other.backend = variant.name
                modules[variant.name] = other
    return found, skipped


def find_semi_structured(
    model: nn.Module, inputs: Inputs, mode: Mode, kind: Packing
) -> tuple[Contestants, dict[str, str]]:
    """Return what each masked layer can be on a GPU, by path, and why others stay dense."""
    found: Contestants = {}
    for module in model.modules():
        disable(module)
    candidates = sparse_candidates(model, inputs)
    skipped = candidates.skipped
    for path, layer in candidates.layers.items():
        reason = why_not(layer, kind, training=mode == "training")
        if reason is not None:
            skipped[path] = reason
        elif mode == "training":
            # Views of the layer, for measuring only.
            dense, sparse = recast(layer, type(layer)), recast(layer, type(layer))
            enable(sparse, kind)
            found[path] = {"dense": dense, "sparse": sparse}
        else:
            remove_mask(layer)
            found[path] = {"dense": layer, "sparse": SemiStructuredLinear.from_dense(layer, kind)}
    return found, skipped


@torch.no_grad()
def record_calls(
    model: nn.Module,
    contestants: Mapping[str, object],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Call]:
    """Run the model and return the calls of convolutions and contestants, in order."""
    calls: dict[str, Call] = {}
    hooks = []

    def record(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
            if path in calls:
                calls[path].count += 1
            elif inputs:  # else it is called by keywords
                calls[path] = Call(path, module, tuple(x for x in inputs if x is not None))

        return hook

    for path, module in model.named_modules():
        if path in contestants or isinstance(module, nn.Conv2d):
            # After the call, so that one whose error the model catches is none.
            hooks.append(module.register_forward_hook(record(path)))
    try:
        model.eval()
        with running(model, (args, kwargs)):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())


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


def _wrong_type(weight: Tensor) -> str:
    return f"has weights of {weight.dtype}, and the kernels compute in torch.float32: use `model.float()`"


def _layers_with_zeros(model: nn.Module, found: Contestants) -> dict[str, str]:
    """Return why layers stay dense of which many weights are zero, though nothing masks them."""
    skipped: dict[str, str] = {}
    masked = {name for name, *_ in named_masks(model)}
    for path, module in model.named_modules():
        if path in found or isinstance(module, SparseLayer):
            continue
        for parameter, weight in module._parameters.items():
            name = f"{path}.{parameter}" if path else parameter
            if weight is None or weight.ndim < 2 or name in masked or not weight.numel():
                continue
            if float((weight == 0).float().mean()) >= _MANY_ZEROS:
                skipped[path if parameter == "weight" else name] = why_dense(module, parameter) or (
                    "has many zeros and no mask: isoflop.freeze has left it dense, or "
                    "isoflop.sparsify has not masked it"
                )
    return skipped


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
