"""Which weights of a model are sparse, and how many non-zeros each keeps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError, NoTransformableLayersError, PlanError
from isoflop.flops.trace import network_ends, trace_for_budget
from isoflop.masks import get_mask
from isoflop.plan import UNTRANSFORMED, LayerPlan, Plan
from isoflop.sparsity.allocation import Allocation, exact_counts, num_nonzero
from isoflop.sparsity.target import Target
from isoflop.sparsity.weights.sharding import copy_into, full_tensor, is_sharded, local, stamp
from isoflop.surgery import ExampleInputs, is_fan_in_fan_out, match_paths, scripted_parts

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

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class MaskedTarget(Target):
    """A dense weight with a mask beside it (once it is masked), found anew at each access.

    Holding tensors here would go stale: loading a checkpoint or moving the model may replace them.

    Attributes:
        module: The module that owns the weight.
        parameter: Name of the weight in the module.
    """

    module: nn.Module
    parameter: str

    @property
    def weight(self) -> nn.Parameter:
        """The weight as it is now."""
        weight = self.module._parameters.get(self.parameter)
        if weight is None:
            raise IsoflopError(
                f"{self.name!r} is no parameter any more: it is computed from others since weight norm, "
                "spectral norm, pruning or another parametrisation was added after `sparsify`. Take that "
                "away, or add it before `sparsify` and exclude the layer."
            )
        return weight

    @property
    def place(self) -> tuple[nn.Module, str]:
        """The module that owns the weight, and its name there."""
        return self.module, self.parameter

    @property
    def trained(self) -> nn.Parameter:
        """The weight."""
        return self.weight

    def mask_mark(self) -> object:
        """Return what differs once the mask has been changed or replaced."""
        return stamp(self.mask)

    def count(self) -> Tensor:
        """Return how many weights are active, as the mask has it now."""
        return full_tensor(self.mask.sum())

    def stray(self) -> int:
        """Return how many weights off the mask are not zero, on this device."""
        off = (local(self.weight.detach()) != 0).logical_and_(~local(self.mask))
        return int(off.sum())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.weight.shape)

    @property
    def mask(self) -> Tensor:
        """The mask as it is now."""
        weight = self.weight
        mask = get_mask(self.module, self.parameter)
        if mask is None:
            raise IsoflopError(
                f"The mask of {self.name!r} is gone while a sparsifier still uses it. Call "
                "`sparsifier.remove()` before taking masks away."
            )
        if is_sharded(weight) != is_sharded(mask):
            raise IsoflopError(
                f"The weight {self.name!r} was sharded after its mask was made. Call `fully_shard` "
                "first, then make the optimizer, then call `sparsify`."
            )
        return mask

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return weight and mask, all of them if they are spread over several workers."""
        return full_tensor(self.weight.detach()), full_tensor(self.mask)

    def choose(self, mask: Tensor) -> None:
        """Change the mask in place, to one that every worker has whole.

        Weights that are masked by this become zero at the end of the step (see `MaskedWeights`).
        """
        copy_into(self.mask, mask)

    def placed(self, tensor: Tensor) -> Tensor:
        """Return a copy on the device, and in the parts, of the weight."""
        copied = torch.empty_like(self.weight, requires_grad=False)
        copy_into(copied, tensor)
        return copied

    def by_output(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as a matrix, a row for each output of the layer."""
        if not isinstance(self.module, _TRANSPOSED):
            return (tensor.t() if is_fan_in_fan_out(self.module) else tensor).flatten(1)
        # (in, out / groups, …): the outputs of a group see the inputs of that group alone.
        rows, outputs = self.shape[0] // self.module.groups, self.shape[1]
        grouped = tensor.reshape(-1, rows, outputs, math.prod(self.shape[2:])).transpose(1, 2)
        return grouped.reshape(outputs * self.module.groups, -1)


def from_plan(model: nn.Module, plan: Plan) -> list[MaskedTarget]:
    """Return the sparse weights of `plan`, with the plan's numbers of non-zeros."""
    if not plan.sparse_layers:
        raise NoTransformableLayersError(
            "The plan has no sparse layer, so there is nothing to mask. Use the method 'dense'."
        )
    targets = []
    for layer in plan.sparse_layers:
        if not 0 < layer.nnz <= layer.numel:
            raise PlanError(
                f"The plan keeps {layer.nnz} of {layer.numel} weights of {layer.parameter!r}. Use "
                "a plan as `isoflop.transform` returned it."
            )
        path, _, parameter = layer.parameter.rpartition(".")
        module = model.get_submodule(path)
        targets.append(MaskedTarget(layer.parameter, layer.nnz, module, parameter))
    return targets


def from_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> list[MaskedTarget]:
    """Return the weights that have a mask, with its number of active positions."""
    targets = []
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise IsoflopError(
                f"There is a mask for {name!r}, which is no parameter of {type(model).__name__}. Pass "
                "masks by the names of `model.named_parameters()`."
            )
        shape = tuple(parameters[name].shape)
        if mask.dtype != torch.bool or tuple(mask.shape) != shape or not mask.any():
            raise IsoflopError(
                f"The mask of {name!r} must be boolean, of shape {shape} like the weight, and not empty; "
                f"it is {mask.dtype} of shape {tuple(mask.shape)} with {int(mask.sum())} active "
                "positions."
            )
        path, _, parameter = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, torch.jit.ScriptModule):
            raise _scripted(path)
        targets.append(MaskedTarget(name, int(mask.sum()), module, parameter))
    return targets


def from_sparsity(
    model: nn.Module,
    sparsity: float,
    allocation: Allocation,
    *,
    dense_ends: bool,
    example_inputs: ExampleInputs | None,
    exclude: Sequence[str],
) -> list[MaskedTarget]:
    """Return the weights of all linear and convolution layers, at `sparsity` overall."""
    candidates, computed = _maskable_weights(model), _computed_weights(model)
    scripted = scripted_parts(model)
    excluded = match_paths([*(path for path, _ in candidates), *computed, *scripted], exclude)
    for path in scripted:
        if path not in excluded:
            raise _scripted(path)
    for path in computed:
        if path not in excluded:
            raise IsoflopError(
                f"The weight of {path!r} is computed from other parameters (weight norm, spectral "
                "norm, PyTorch's pruning or another parametrisation), so zeros in it would not stay. "
                "Call `torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')`, or "
                "`torch.nn.utils.prune.remove(module, 'weight')` after PyTorch's pruning, or exclude "
                f"{path!r}."
            )
    ends: set[str] = set()
    if dense_ends and example_inputs is not None:
        ends = set().union(*network_ends(model, example_inputs))
    elif dense_ends and candidates:
        ends = {candidates[0][0], candidates[-1][0]}
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
            f"{len(excluded)} are excluded. Pass dense_ends=False or exclude less."
        )
    shapes = [tuple(module.get_parameter("weight").shape) for _, module in kept]
    total = num_nonzero(sum(math.prod(shape) for shape in shapes), sparsity)
    counts = exact_counts(shapes, allocation(shapes, 1 - sparsity), total)
    return [
        MaskedTarget(f"{path}.weight" if path else "weight", nnz, module, "weight")
        for (path, module), nnz in zip(kept, counts, strict=True)
    ]


def plain_plan(
    model: nn.Module, example_inputs: ExampleInputs, targets: Sequence[MaskedTarget]
) -> Plan:
    """Return the plan of a model that was not transformed, with `targets` sparse.

    The budget to which its gap refers is the same model without zeros.
    """
    table = trace_for_budget(model, example_inputs).table
    parameters = dict(model.named_parameters())
    # A tied weight is known to the trace by its first name.
    nnz = {id(target.weight): target for target in targets}
    layers = []
    macs = table.by_parameter()
    for name, price in table.prices({name: p.numel() for name, p in parameters.items()}).items():
        parameter = parameters[name]
        target = nnz.get(id(parameter))
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
    return Plan(
        transform=UNTRANSFORMED,
        config={},
        scope="model",
        dense_macs=table.dense_macs,
        other_macs=table.dense_macs - sum(layer.unmasked_macs for layer in layers),
        layers=tuple(layers),
    )


def _scripted(path: str) -> IsoflopError:
    advice = f", or exclude {path!r}." if path else "."
    return IsoflopError(
        f"{repr(path) if path else 'The model'} is compiled by torch.jit, and its layers cannot be "
        f"masked. Pass the model as it was before torch.jit.script or torch.jit.trace{advice}"
    )


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
