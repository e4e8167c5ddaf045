"""Which weights of a model are sparse, and how many non-zeros each keeps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError, NoTransformableLayersError, PlanError
from isoflop.masks import get_mask
from isoflop.plan import Plan
from isoflop.sparsity.target import Target
from isoflop.sparsity.weights.sharding import copy_into, full_tensor, is_sharded, local, stamp
from isoflop.surgery import is_fan_in_fan_out

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

        Weights that are masked by this become zero at the end of the step (see `MaskedStorage`).
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
    layers = list(plan.sparse_layers)
    if not plan.is_transformed:
        # Random masks are drawn in this order, whether a sparsity or its plan was passed.
        order = {n: i for i, (n, _) in enumerate(model.named_parameters(remove_duplicate=False))}
        layers.sort(key=lambda layer: order[layer.parameter])
    targets = []
    for layer in layers:
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
            raise scripted(path)
        targets.append(MaskedTarget(name, int(mask.sum()), module, parameter))
    return targets


def scripted(path: str) -> IsoflopError:
    """Return the error for a part of a model that torch.jit has compiled."""
    advice = f", or exclude {path!r}." if path else "."
    return IsoflopError(
        f"{repr(path) if path else 'The model'} is compiled by torch.jit, and its layers cannot be "
        f"masked. Pass the model as it was before torch.jit.script or torch.jit.trace{advice}"
    )
