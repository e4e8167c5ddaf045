"""`isoflop.transform`: a dense model in, a bigger and sparser model of the same FLOPs out."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from isoflop.budget import meet_layer_budgets, meet_model_budget
from isoflop.errors import (
    BudgetError,
    InputError,
    IsoflopError,
    NoEffectWarning,
    NoTransformableLayersError,
    TrainedModelWarning,
    WideningError,
)
from isoflop.flops.copies import copy_tensor_hooks
from isoflop.flops.replaced import check_replaced
from isoflop.flops.trace import Trace, trace, trace_for_budget
from isoflop.masks import named_masks
from isoflop.plan import LayerPlan, Plan
from isoflop.registry import known_name
from isoflop.surgery import ExampleInputs, check_module, match_paths
from isoflop.transforms.attention import SeparateAttention
from isoflop.transforms.base import (
    TRANSFORMS,
    Source,
    Transform,
    WeightSpec,
    replaceable_layers,
)
from isoflop.transforms.build import find_transform
from isoflop.transforms.initialize import fill_frozen, initialize
from isoflop.transforms.trained import sign_of_training


def transform(
    model: nn.Module,
    config: Transform | str,
    *,
    example_inputs: ExampleInputs,
    scope: Literal["model", "layers"] = "model",
    seed: int = 0,
    **options: Any,
) -> tuple[nn.Module, Plan]:
    """Replace a model's dense layers by larger, sparser ones of equal FLOPs.

    The weights of the result are drawn anew and are not masked yet: `isoflop.sparsify` does that,
    guided by the plan. Frozen parameters (`requires_grad=False`) stay as they are, and their layers
    dense. So transform a model before it is trained; a `TrainedModelWarning` tells where it shows that
    it was.

    Args:
        model: Any dense module; it is not changed, and may be on the meta device.
        config: The transform, such as ``SparseWide(sparsity=0.75)``, or a registered name such as
            ``"wide"``.
        example_inputs: A tensor, a shape such as ``(1, 3, 224, 224)``, a tuple of positional
            arguments, or a dict of keyword arguments that the model takes.
        scope: ``"model"``: the whole model costs what the dense one does, so the sparse layers pay
            for the parts that grow and stay dense (paper, appendix A.2). ``"layers"``: each layer
            costs what the layer that it replaces does.
        seed: Seed of the new weights.
        options: The options of the transform, such as ``sparsity=0.75``, if `config` is a name.

    Returns:
        The new model and its plan; ``print(plan)`` shows every layer and the gaps.

    Raises:
        IsoflopError: An option is invalid or an exclude pattern matches nothing.
        InputError: The model cannot be run on the example inputs.
        WideningError: The model cannot be widened, is masked or parametrised already, or has a frozen
            parameter of the size of a width whose content at another width is not known.
        NoTransformableLayersError: Nothing is left to transform.
        BudgetError: No sparsity meets the budget.
    """
    scope = known_name(scope, ("model", "layers"), "scope")
    check_module(model)
    config = find_transform(config, **options)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise IsoflopError(f"seed must be an integer, not {seed!r}.")
    _check_untouched(model)
    source = _source(model, config, example_inputs)
    new, specs = config.build(source)
    copy_tensor_hooks(model, new)
    fill_frozen(new, source.model)
    plan = _plan(new, source, config, specs, scope)
    initialize(
        new,
        source.model,
        {layer.parameter: layer for layer in plan.layers},
        {name: spec.gain for name, spec in specs.items()} | dict.fromkeys(source.trace.last, 1.0),
        active_fan=config.init == "active_fan",
        seed=seed,
    )
    sign = sign_of_training(model)
    if sign is not None:
        warnings.warn(
            f"{type(model).__name__} was trained: {sign}. A transform draws all weights anew, so that "
            "what the model has learned is lost; only frozen parameters stay. Transform the model "
            "before it is trained.",
            TrainedModelWarning,
            stacklevel=2,
        )
    if plan.macs == plan.unmasked_macs and config.sparsity > 0:
        warnings.warn(
            f"{TRANSFORMS.name_of(config)} at sparsity {config.sparsity} changes no size of this "
            "model: its layers are too small for so low a sparsity.",
            NoEffectWarning,
            stacklevel=2,
        )
    return new, plan


def _check_untouched(model: nn.Module) -> None:
    """Raise if a part of the model is such that its weights cannot be drawn anew."""
    for name, *_ in named_masks(model):
        raise WideningError(
            f"{name} is masked already: transform the dense model, before `isoflop.sparsify`."
        )
    for path, module in model.named_modules():
        if _is_quantised(module):
            raise WideningError(
                f"{path or 'the model'} is quantised ({type(module).__name__}): transform and train "
                "the floating-point model, and quantise the result."
            )
        if any(p.is_complex() for p in module.parameters(recurse=False)):
            raise WideningError(
                f"{path or 'the model'} has complex weights, of which no transform knows how to draw new "
                "ones. Hold them as real and imaginary parts (`torch.view_as_complex`)."
            )
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise WideningError(
                f"{path or 'the model'} is lazy: run the model once, so that its sizes are known, "
                "before transforming it."
            )
        if parametrize.is_parametrized(module):
            raise WideningError(
                f"{path or 'the model'} is parametrised; remove that first with "
                "`torch.nn.utils.parametrize.remove_parametrizations`."
            )
        for hook in module._forward_pre_hooks.values():
            for kind, (state, remedy) in _RECOMPUTING.items():
                if isinstance(hook, kind):
                    name = getattr(hook, "_tensor_name", getattr(hook, "name", "weight"))
                    raise WideningError(
                        f"{path or 'the model'} is {state}: its {name!r} is computed from other tensors "
                        f"before each forward pass. Remove that first with `{remedy}(module, {name!r})`."
                    )


_RECOMPUTING: dict[type, tuple[str, str]] = {
    prune.BasePruningMethod: ("pruned", "torch.nn.utils.prune.remove"),
    WeightNorm: ("weight-normalised", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("spectrally normalised", "torch.nn.utils.remove_spectral_norm"),
}
"""Hooks that compute a weight before each forward pass: what the layer is, and what removes them."""


def _is_quantised(module: nn.Module) -> bool:
    names = {"quantized", "torchao", "bitsandbytes"}
    bytes_ = {torch.int8, torch.uint8}
    integers = any(p.dtype in bytes_ for p in module.parameters(recurse=False))
    return integers or not names.isdisjoint(type(module).__module__.split("."))


def _source(model: nn.Module, config: Transform, example_inputs: ExampleInputs) -> Source:
    model, found, excluded = _prepared(model, config, example_inputs)
    ends = found.first | found.last if config.dense_ends else frozenset()
    parameters = dict(model.named_parameters())
    weights = tuple(
        name
        for name in found.table.prices(_numels(model))
        if name not in ends
        and name.rpartition(".")[0] not in excluded
        and parameters[name].ndim >= 2
        and parameters[name].requires_grad
    )
    source = Source(
        model=model,
        example_inputs=example_inputs,
        trace=found,
        weights=weights,
        layers=replaceable_layers(model, found, weights),
        excluded=frozenset(excluded),
    )
    if not config.applies(source):
        raise _nothing_to_transform(model, config, found)
    return source


def _prepared(
    model: nn.Module, config: Transform, example_inputs: ExampleInputs
) -> tuple[nn.Module, Trace, set[str]]:
    """Return the model that `config` works on, its trace, and the excluded paths in it."""
    found = trace_for_budget(model, example_inputs)
    # Twice: patterns may name modules that preparing makes, and what they exclude is left alone.
    everything = config.prepared(model, found, ())
    paths = [path for path, _ in everything.named_modules() if path]
    excluded = match_paths(paths, config.exclude)
    prepared = config.prepared(model, found, excluded)
    if prepared is model:
        return model, found, excluded
    old = dict(model.named_modules())
    taken_apart = {
        path: (old[path], module)
        for path, module in prepared.named_modules()
        if isinstance(module, SeparateAttention)
    }
    check_replaced(prepared, example_inputs, taken_apart)
    after = trace(prepared, example_inputs)
    same_macs = after.table.macs == found.table.macs
    if not same_macs or after.output_shapes != found.output_shapes:
        raise IsoflopError(
            f"{type(model).__name__} does other work once its attention is taken apart "
            f"({after.table.macs:,} MACs, {found.table.macs:,} before). Exclude that attention."
        )
    return prepared, after, excluded


def _nothing_to_transform(
    model: nn.Module, config: Transform, found: Trace
) -> NoTransformableLayersError:
    return NoTransformableLayersError(
        f"{type(model).__name__} has no layer that {type(config).__name__} can transform: there must "
        "be a Linear or convolution besides the first layer, the last layer"
        f"{config.leaves_out} and the "
        f"excluded ones. `dense_ends=False` transforms the ends too.{_frozen(model, found)}"
        f"{_recomputed(found)}"
    )


def _frozen(model: nn.Module, found: Trace) -> str:
    parameters = dict(model.named_parameters())
    names = [n for n in found.table.prices(_numels(model)) if not parameters[n].requires_grad]
    if not names:
        return ""
    return (
        f" {len(names)} weights, such as {names[0]!r}, are frozen, and stay as they are: unfreeze with "
        "`requires_grad_(True)` what is to be trained."
    )


def _recomputed(found: Trace) -> str:
    names = sorted(found.table.recomputed)
    if not names:
        return ""
    return (
        f" {len(names)} weights, such as {names[0]!r}, are recomputed before they multiply, as by "
        "weight standardisation: zeros would not stay zeros, so that they count as dense."
    )


def _plan(
    new: nn.Module,
    source: Source,
    config: Transform,
    specs: Mapping[str, WeightSpec],
    scope: str,
) -> Plan:
    try:
        after = trace(new, source.example_inputs)
    except InputError as error:
        raise WideningError(
            f"{type(source.model).__name__} runs on the example inputs, the transformed model does not: "
            f"{error.reason or error}. A size that the code there computes did not follow a width: `//` "
            "keeps one that `int`, `round` or `/` would make a plain number. Change the code, tell with "
            "`isoflop.register_widening_rule` what the trace does not see, or use a transform that keeps "
            "widths, such as SparseParallel."
        ) from error
    _check_outputs(source.trace, after)
    before = source.trace.table
    dense_parameters = dict(source.model.named_parameters())
    parameters = dict(new.named_parameters())
    dense_macs = before.by_parameter()
    layers = []
    for name, price in after.table.prices(_numels(new)).items():
        spec = specs.get(name, WeightSpec(name.rpartition(".")[0], "dense"))
        # The source of an untouched weight is the weight itself.
        original = name if name in dense_macs else _weight_of(spec.source)
        shape = tuple(parameters[name].shape)
        layers.append(
            LayerPlan(
                parameter=name,
                source=spec.source,
                kind=spec.kind,
                dense_shape=tuple(dense_parameters[original].shape),
                shape=shape,
                nnz=parameters[name].numel(),
                macs_per_weight=price,
                source_macs=dense_macs[original],
                nominal_density=spec.density,
                nonlinearity=spec.nonlinearity,
            )
        )
    if not any(layer.kind == "sparse" for layer in layers):
        raise _nothing_to_transform(source.model, config, after)
    plan = Plan(
        transform=TRANSFORMS.name_of(config),
        config=config.to_dict(),
        scope=scope,
        dense_macs=before.macs,
        other_macs=after.table.macs - sum(layer.unmasked_macs for layer in layers),
        layers=tuple(layers),
    )
    try:
        return meet_model_budget(plan) if scope == "model" else meet_layer_budgets(plan)
    except BudgetError as error:
        raise BudgetError(f"{error}{_recomputed(after)}") from None


def _numels(model: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def _weight_of(path: str) -> str:
    return f"{path}.weight" if path else "weight"


def _check_outputs(before: Trace, after: Trace) -> None:
    if before.output_shapes != after.output_shapes:
        raise WideningError(
            f"The transformed model returns shapes {after.output_shapes}, the dense one "
            f"{before.output_shapes}. Say what the trace does not see with "
            "`isoflop.register_widening_rule`, or use a transform that keeps widths, such as "
            "SparseParallel."
        )
