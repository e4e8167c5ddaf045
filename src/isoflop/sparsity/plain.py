"""The plan of a model that is made sparse as it is: which weights, and how many non-zeros of each."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from isoflop.errors import IsoflopError, NoTransformableLayersError
from isoflop.flops.trace import FlopTable, trace_for_budget
from isoflop.plan import UNTRANSFORMED, LayerPlan, Plan
from isoflop.registry import names_in
from isoflop.sparsity.allocation import (
    Allocation,
    allocation_name,
    exact_counts,
    find_allocation,
    num_nonzero,
)
from isoflop.sparsity.targets import MaskedTarget, scripted
from isoflop.sparsity.weights.sharding import is_sharded
from isoflop.surgery import (
    ExampleInputs,
    check_module,
    is_fan_in_fan_out,
    match_paths,
    scripted_parts,
)

MASKABLE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""The modules whose `weight` is masked unless a plan says otherwise; and Hugging Face's Conv1D."""


def plain_plan(
    model: nn.Module,
    sparsity: float,
    *,
    example_inputs: ExampleInputs | None = None,
    allocation: Allocation | str = "uniform",
    dense_ends: bool = True,
    exclude: str | Iterable[str] = (),
) -> Plan:
    """Plan to make a model sparse as it is, without a transform.

    The linear and convolution layers become sparse. The plan is passed to `isoflop.sparsify`; with
    `exclude` alone, so is the sparsity itself.

    Args:
        model: The dense model, which is not changed.
        sparsity: Fraction of the weights of these layers that is zero, in [0, 1); in the end, for
            methods that prune during training.
        example_inputs: Inputs by which the first and the last layer are found in the flow of the
            data, and MACs are counted; see `isoflop.profile`. Without them, the order of definition
            tells the first and the last layer, and the plan counts no MACs.
        allocation: How the sparsity is spread over the layers: a registered name or a function.
        dense_ends: Leave the first and the last layer dense.
        exclude: Patterns of module paths, such as ``"blocks.*.proj"``, that stay dense with everything
            inside them; or one pattern.

    Returns:
        The plan. The budget to which its gap refers is the same model without zeros.

    Raises:
        IsoflopError: An argument is wrong, or an exclude pattern matches nothing.
        InputError: The model cannot be run on the example inputs.
        NoTransformableLayersError: Nothing is left to mask.
    """
    check_module(model)
    check_sparsity(sparsity)
    function = find_allocation(allocation)
    patterns = names_in(exclude, "exclude")
    if example_inputs is not None and any(is_sharded(p) for p in model.parameters()):
        raise IsoflopError(
            "The model is sharded already, so it cannot be copied to count MACs. Make the plan before "
            "`fully_shard`, or leave out example_inputs."
        )
    candidates, excluded = _candidates(model, patterns)
    table: FlopTable | None = None
    ends: set[str] = set()
    if example_inputs is not None:
        found = trace_for_budget(model, example_inputs)
        table = found.table
        ends = {name.rpartition(".")[0] for name in found.first | found.last}
    elif candidates:
        ends = {candidates[0][0], candidates[-1][0]}
    if not dense_ends:
        ends = set()
    kept = _kept(model, candidates, excluded, ends)
    shapes = [tuple(module.get_parameter("weight").shape) for _, module in kept]
    total = num_nonzero(sum(math.prod(shape) for shape in shapes), sparsity)
    counts = exact_counts(shapes, function(shapes, 1 - sparsity), total)
    targets = [
        MaskedTarget(f"{path}.weight" if path else "weight", nnz, module, "weight")
        for (path, module), nnz in zip(kept, counts, strict=True)
    ]
    return plan_of(model, table, targets, allocation_name(function))


def check_sparsity(sparsity: Any) -> None:
    """Raise unless `sparsity` is a number in [0, 1)."""
    number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    if not (number and 0 <= sparsity < 1):
        raise IsoflopError(
            "sparsity is the fraction of weights that are zero and must lie in [0, 1), such as "
            f"0.9, not {sparsity!r}."
        )


def plan_of(
    model: nn.Module,
    table: FlopTable | None,
    targets: Sequence[MaskedTarget],
    allocation: str = "uniform",
) -> Plan:
    """Return the plan of a model that was not transformed, with `targets` sparse.

    Args:
        model: The model.
        table: What it costs; without it, the plan counts no MACs.
        targets: The weights to mask.
        allocation: Name of what spreads the sparsity over them.
    """
    parameters = dict(model.named_parameters())
    # A tied weight is known to the trace by its first name.
    left = {id(target.weight): target for target in targets}
    layers = []
    macs = {} if table is None else table.by_parameter()
    sizes = {name: p.numel() for name, p in parameters.items()}
    for name, price in ({} if table is None else table.prices(sizes)).items():
        parameter = parameters[name]
        target = left.pop(id(parameter), None)
        shape = tuple(parameter.shape)
        layers.append(
            LayerPlan(
                parameter=name if target is None else target.name,
                source=name.rpartition(".")[0],
                kind="dense" if target is None else "sparse",
                dense_shape=shape,
                shape=shape,
                nnz=parameter.numel() if target is None else target.nnz,
                macs_per_weight=price,
                source_macs=macs[name],
            )
        )
    # The forward pass does not reach these, or was not looked at.
    layers += [
        LayerPlan(
            parameter=target.name,
            source=target.name.rpartition(".")[0],
            kind="sparse",
            dense_shape=target.shape,
            shape=target.shape,
            nnz=target.nnz,
            macs_per_weight=0,
            source_macs=0,
        )
        for target in left.values()
    ]
    dense_macs = 0 if table is None else table.dense_macs
    return Plan(
        transform=UNTRANSFORMED,
        config={},
        scope="model",
        dense_macs=dense_macs,
        other_macs=dense_macs - sum(layer.unmasked_macs for layer in layers),
        layers=tuple(layers),
        allocation=allocation,
    )


def _candidates(
    model: nn.Module, exclude: Sequence[str]
) -> tuple[list[tuple[str, nn.Module]], set[str]]:
    """Return path and module of each weight that may be masked, and the excluded paths."""
    candidates, computed = _maskable_weights(model), _computed_weights(model)
    compiled = scripted_parts(model)
    excluded = excluded_paths(model, exclude)
    for path in compiled:
        if path not in excluded:
            raise scripted(path)
    for path in computed:
        if path not in excluded:
            raise IsoflopError(
                f"The weight of {path!r} is computed from other parameters (weight norm, spectral "
                "norm, PyTorch's pruning or another parametrisation), so zeros in it would not stay. "
                "Call `torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')`, or "
                "`torch.nn.utils.prune.remove(module, 'weight')` after PyTorch's pruning, or exclude "
                f"{path!r}."
            )
    return candidates, excluded


def excluded_paths(model: nn.Module, exclude: Sequence[str]) -> set[str]:
    """Return the paths that patterns leave dense.

    Raises:
        IsoflopError: A pattern matches no layer that could be sparse.
    """
    paths = [path for path, _ in _maskable_weights(model)]
    return match_paths([*paths, *_computed_weights(model), *scripted_parts(model)], exclude)


def _kept(
    model: nn.Module,
    candidates: Sequence[tuple[str, nn.Module]],
    excluded: set[str],
    ends: set[str],
) -> list[tuple[str, nn.Module]]:
    """Return the candidates that are neither excluded nor ends, nor tied to such a layer."""
    skipped = _tied_to(model, excluded | ends)
    kept = [(path, module) for path, module in candidates if id(module.weight) not in skipped]
    if not kept:
        for path, module in model.named_modules():
            if "quantized" in type(module).__module__.split("."):
                raise NoTransformableLayersError(
                    f"{path or 'The model'} is quantised ({type(module).__name__}): sparsify the "
                    "floating-point model, and quantise the result."
                )
        raise NoTransformableLayersError(
            f"No layer of {type(model).__name__} is left to mask: of its {len(candidates)} linear "
            f"and convolution layers, {len(ends)} are kept dense as the ends of the network and "
            f"{len(excluded)} are excluded. Exclude less, or pass a plan of "
            "`isoflop.plain_plan(…, dense_ends=False)`."
        )
    return kept


def _maskable_weights(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return path and module of each weight that may be masked, tied ones once."""
    seen: set[int] = set()
    found = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in seen:
            continue
        # Whoever owns a weight first decides: a head tied to an embedding stays dense with it.
        seen.add(id(weight))
        if _is_maskable(module):
            if isinstance(weight, nn.UninitializedParameter):
                raise IsoflopError(
                    f"The layer {path!r} is lazy and has no shape yet. Run the model once first."
                )
            found.append((path, module))
    return found


def _computed_weights(model: nn.Module) -> list[str]:
    """Return the paths of layers whose weight is no parameter but computed from others."""
    return [
        path
        for path, module in model.named_modules()
        if _is_maskable(module) and "weight" not in module._parameters
    ]


def _is_maskable(module: nn.Module) -> bool:
    return isinstance(module, MASKABLE) or is_fan_in_fan_out(module)


def _tied_to(model: nn.Module, paths: Iterable[str]) -> set[int]:
    """Return the ids of the weights of the modules at `paths`, under whatever name they go."""
    paths = set(paths)
    return {
        id(module._parameters.get("weight"))
        for path, module in model.named_modules(remove_duplicate=False)
        if path in paths and not isinstance(module, torch.jit.ScriptModule)
    }
