"""`isoflop.accelerate`: each layer on what is fastest for it, measured."""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from isoflop.errors import KernelError, NoEffectWarning
from isoflop.flops.copies import copy_with_tensors
from isoflop.flops.fakes import plain_output
from isoflop.kernels.autotune.calls import record_calls
from isoflop.kernels.autotune.change import Change
from isoflop.kernels.autotune.choices import (
    LayerChoice,
    choose_backends,
    circumstances,
    given_backends,
)
from isoflop.kernels.autotune.contestants import Mode, find_contestants, find_semi_structured
from isoflop.kernels.autotune.inputs import real_inputs, undisturbed
from isoflop.kernels.autotune.timing import TimingCache, default_cache_path, synchronize
from isoflop.kernels.cpu.library import available
from isoflop.kernels.cpu.variants import VARIANTS, Variant
from isoflop.kernels.fuse.freeze import fuse_activations
from isoflop.kernels.semi_structured import packing
from isoflop.nests import tensors_in
from isoflop.surgery import ExampleInputs, check_module
from isoflop.text import aligned


@dataclass(frozen=True, kw_only=True)
class AccelerationReport:
    """What `accelerate` measured and did.

    Attributes:
        mode: ``"inference"`` or ``"training"``.
        layers: The layers that could run on either.
        skipped: Why other layers with zeros could not, by path.
        seconds_before: Time of the model as it was.
        seconds_after: Time of the model with the choices made.
        accelerated: Whether the choices are in place: they are not if the model got slower.
    """

    mode: str
    layers: tuple[LayerChoice, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    seconds_before: float = math.nan
    seconds_after: float = math.nan
    accelerated: bool = False

    @property
    def choices(self) -> dict[str, str]:
        """What each layer runs on, by path; empty if the model stayed as it was."""
        return {layer.path: layer.chosen for layer in self.layers if self.accelerated}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        measured = {name for layer in self.layers for name in layer.seconds}
        names = [name for name in VARIANTS if name in {"dense", "sparse", *measured}]
        titles = [f"{VARIANTS[name].title} ms" for name in names]
        rows = [("layer", "sparsity", *titles, "chosen")] if self.layers else []
        for layer in self.layers:
            sparsity = 1 - layer.nnz / math.prod(layer.shape)
            times = [f"{1e3 * layer.seconds.get(name, math.nan):.3f}" for name in names]
            rows.append((layer.path, f"{sparsity:.4f}", *times, layer.chosen))
        lines = aligned(rows, left=(0, -1))
        lines += [f"{path or 'the model'} {reason}" for path, reason in self.skipped.items()]
        verdict = "accelerated" if self.accelerated else "left as it was"
        times = (
            "nothing was measured"
            if math.isnan(self.seconds_before)
            else f"{1e3 * self.seconds_before:.3f} ms before, {1e3 * self.seconds_after:.3f} ms after"
        )
        lines.append(f"{self.mode}: {times}; {verdict}")
        return "\n".join(lines)


def accelerate(
    model: nn.Module,
    *,
    example_inputs: ExampleInputs,
    cache: bool | Path = True,
    choices: Mapping[str, str] | None = None,
    allow_bf16: bool = False,
) -> tuple[nn.Module, AccelerationReport]:
    """Return a copy of a model for inference, with each layer on what is fastest for it.

    That is dense PyTorch or the sparse kernels. On a GPU, the sparse kernels are PyTorch's for 2:4
    sparsity, which linear layers can run on whose masks are 2:4 and which compute in bfloat16 or
    float16: by themselves, or because this is called under `torch.autocast`.

    Both are measured at the shapes that the example inputs give each layer, once: the times are
    kept on disk. What it costs to bring activations from the layout of one into that of the other is
    counted. In the end the whole model is measured, and is returned as it was if it got slower. The
    same model with the same times gets the same choices. `accelerate_` does this for training, in
    place.

    Args:
        model: The model, which is not changed. Its masked and its sparse layers are looked at; `freeze`
            it first, but on a GPU, where its masked layers must be there still.
        example_inputs: What it takes, in the batch size that counts; see `isoflop.profile`.
        cache: Whether to keep the times in the user's cache folder, or in the folder that
            `ISOFLOP_CACHE` names; or the file for them.
        choices: What to run each layer on, the `choices` of an earlier report: nothing is measured,
            and the results are the same to the last bit. By default, what is faster.
        allow_bf16: Let sparse layers round what they multiply to bfloat16, where that is fastest, on
            processors that have instructions for it. Tensors and sums stay float32. An output
            changes by about 0.4 % of a root mean square of its layer, so compare the accuracy.

    Returns:
        The copy, in evaluation mode, and a report of what was measured and chosen; ``print(report)``
        shows it. If nothing is faster, the model itself, as it was.

    Raises:
        IsoflopError: The choices are of another model.
        KernelError: The model is neither on the CPU nor on one CUDA device, or the choices take
            instructions that this processor lacks.
        InputError: The model cannot be run on the example inputs.

    Warns:
        NoEffectWarning: There are no kernels for this device, or nothing that they could run.
    """
    return _accelerate(model, example_inputs, "inference", cache, choices, allow_bf16=allow_bf16)


def accelerate_(
    model: nn.Module,
    *,
    example_inputs: ExampleInputs,
    cache: bool | Path = True,
    choices: Mapping[str, str] | None = None,
    allow_bf16: bool = False,
) -> AccelerationReport:
    """Put each layer of a model in training on what is fastest for it, in place.

    Parameters, buffers and their names stay, so that optimizer and sparsifier go on. What is measured,
    and how, is told at `accelerate`, which does this for inference, on a copy.

    Args:
        model: The model. Its sparse layers are looked at (`isoflop.sparsify(storage="compressed")`);
            on a GPU its masked layers, if their masks are 2:4 both ways (`pattern="2:4-T"`). There,
            save the model before, as packed weights are not saved.
        example_inputs: What it takes, in the batch size that counts; see `isoflop.profile`.
        cache: See `accelerate`.
        choices: See `accelerate`.
        allow_bf16: See `accelerate`.

    Returns:
        A report of what was measured and chosen.

    Raises:
        IsoflopError: The choices are of another model.
        KernelError: The model is neither on the CPU nor on one CUDA device, or the choices take
            instructions that this processor lacks.
        InputError: The model cannot be run on the example inputs.

    Warns:
        NoEffectWarning: There are no kernels for this device, or nothing that they could run.
    """
    return _accelerate(model, example_inputs, "training", cache, choices, allow_bf16=allow_bf16)[1]


def _accelerate(
    model: nn.Module,
    example_inputs: ExampleInputs,
    mode: Mode,
    cache: bool | Path,
    choices: Mapping[str, str] | None,
    *,
    allow_bf16: bool,
) -> tuple[nn.Module, AccelerationReport]:
    device = _check(model)
    nothing = model, AccelerationReport(mode=mode)
    kind = packing(device)
    if kind is None and not (device.type == "cpu" and available()):
        _warn(_NO_KERNELS[device.type])
        return nothing
    args, kwargs = real_inputs(model, example_inputs)
    work = _copy(model) if mode == "inference" else model
    if kind is None:
        variants = _allowed_variants(choices, allow_bf16=allow_bf16)
        contestants, skipped = find_contestants(work, (args, kwargs), mode, variants)
    else:
        contestants, skipped = find_semi_structured(work, (args, kwargs), mode, kind)
    if not contestants:
        _warn(_no_contestants(mode, skipped, on_cpu=kind is None))
        return model, AccelerationReport(mode=mode, skipped=skipped)
    step = _inference if mode == "inference" else _training
    with undisturbed(work):
        calls = record_calls(work, contestants, args, kwargs)
        if kind is not None:  # there is no layout to choose for the convolutions in between
            calls = [call for call in calls if call.path in contestants]
        seconds: dict[str, float] = {}
        if choices is not None:
            layers = given_backends(calls, contestants, choices)
            change = Change(work, calls, contestants, layers, mode, kind)
            accelerated = bool(choices)
        else:
            kept = TimingCache(_cache_path(cache))
            layers = choose_backends(calls, contestants, mode, kept)
            what = {**_description(work, args, kwargs, layers), **circumstances(calls, mode)}
            change = Change(work, calls, contestants, layers, mode, kind)

            def run(place: Callable[[], None]) -> None:
                place()
                step(change.model, args, kwargs)
                synchronize(device)

            runs = {"before": partial(run, change.undo), "after": partial(run, change.apply)}
            seconds = kept.times(what, runs)
            kept.save()
            accelerated = seconds["after"] < seconds["before"]
    if accelerated:
        change.apply()
        if mode == "inference" and isinstance(change.model, fx.GraphModule):
            # Those after layers that `freeze` had left dense.
            fuse_activations(change.model)
            change.model.delete_all_unused_submodules()
            change.model.recompile()
    else:
        change.undo()
    report = AccelerationReport(
        mode=mode,
        layers=tuple(layers.values()),
        skipped=skipped,
        seconds_before=seconds.get("before", math.nan),
        seconds_after=seconds.get("after", math.nan),
        accelerated=accelerated,
    )
    return change.model if accelerated else model, report


def _cache_path(cache: bool | Path) -> Path | None:
    if isinstance(cache, Path):
        return cache
    return default_cache_path() if cache else None


def _description(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layers: Mapping[str, LayerChoice],
) -> dict[str, Any]:
    """Return everything about a model and its choices that its times depend on."""
    text = repr((model, [(layer.path, layer.nnz, layer.chosen) for layer in layers.values()]))
    inputs = [(str(x.dtype), tuple(x.shape), x.stride()) for x in tensors_in((args, kwargs))]
    return {"model": hashlib.sha256(text.encode()).hexdigest(), "inputs": inputs}


_NO_KERNELS = {
    "cpu": "There are no compiled kernels, so the model stays as it is. See docs/guide.md.",
    "cuda": (
        "PyTorch has no 2:4 products for this GPU, so the model stays as it is. They take compute "
        "capability 8.0 or more, and a PyTorch with cuSPARSELt."
    ),
}


def _check(model: nn.Module) -> torch.device:
    """Return the device that the model is on."""
    check_module(model)
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or not {device.type for device in devices} <= {"cpu", "cuda"}:
        raise KernelError(
            "Sparse kernels run on the CPU or on one CUDA device, and the model is on "
            f"{', '.join(sorted(map(str, devices)))}: use model.cpu() or model.cuda()."
        )
    return next(iter(devices), torch.device("cpu"))


def _allowed_variants(choices: Mapping[str, str] | None, *, allow_bf16: bool) -> list[Variant]:
    """Return what sparse layers may run on here.

    Raises:
        KernelError: This processor lacks the instructions of one that was chosen.
    """
    chosen = {VARIANTS[name] for name in (choices or {}).values() if name in VARIANTS}
    for variant in chosen:
        if not variant.runs_here():
            raise KernelError(
                f"The choices are of a processor with {variant.needs}, which this one lacks. Leave "
                "them out, so that the layers are measured here."
            )
    types = (None, torch.bfloat16) if allow_bf16 else (None,)
    allowed = {variant for variant in VARIANTS.values() if variant.rounds_to in types}
    return [v for v in VARIANTS.values() if v in chosen | allowed and v.runs_here()]


def _no_contestants(mode: Mode, skipped: Mapping[str, str], *, on_cpu: bool) -> str:
    """Return why there is nothing to accelerate."""
    if skipped:
        path, reason = next(iter(skipped.items()))
        others = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        products = "the sparse kernels" if on_cpu else "2:4 products"
        return (
            f"No layer with zeros can run on {products}, so the "
            f"model stays as it is: {path or 'it'} {reason}{others}."
        )
    if on_cpu and mode == "training":
        return (
            "The model has no sparse layer, so it stays as it is. Train with "
            "isoflop.sparsify(storage='compressed')."
        )
    return (
        f"The model has no masked layer{' and no sparse one' if on_cpu else ''}, "
        "so it stays as it is."
    )


def _warn(text: str) -> None:
    warnings.warn(text, NoEffectWarning, stacklevel=4)


def _copy(model: nn.Module) -> nn.Module:
    return copy_with_tensors(model, lambda *args: args[-1].detach().clone()).eval()


@torch.no_grad()
def _inference(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model(*args, **kwargs)


def _training(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    outputs = tensors_in(plain_output(model.train()(*args, **kwargs)))
    trained = [y for y in outputs if y.requires_grad]
    torch.autograd.backward([y.float().sum() for y in trained])
    model.zero_grad()
