"""Masked layers that have a sparse form."""

import torch
from torch import Tensor, nn

from isoflop.errors import KernelError
from isoflop.flops import trace_values
from isoflop.kernels.inputs import real_inputs
from isoflop.kernels.layers import SparseConv2d, SparseLayer, SparseLinear
from isoflop.masks import get_mask
from isoflop.surgery import ExampleInputs, is_flipped
from isoflop.transforms.usage import owner_counts, weight_users

BLOCK = 4
"""Consecutive output channels of a block that the kernels read at once."""


def sparse_layer(layer: nn.Module, mask: Tensor) -> SparseLayer | None:
    """Return the sparse form of a layer, or None if there is none.

    Args:
        layer: Any module.
        mask: Boolean, shaped like its weight.
    """
    # Subclasses may compute something else.
    linear = type(layer).forward is nn.Linear.forward or is_flipped(layer)
    conv = type(layer).forward is nn.Conv2d.forward
    if not (linear or conv):
        return None
    groups = getattr(layer, "groups", 1)
    rows = BLOCK if _in_blocks(mask.t() if is_flipped(layer) else mask, groups) else 1
    try:
        if isinstance(layer, nn.Conv2d):
            return SparseConv2d.from_dense(layer, mask, rows=rows)
        return SparseLinear.from_dense(layer, mask, rows=rows)
    except KernelError:  # such as circular padding
        return None


def masked_layers(model: nn.Module, example_inputs: ExampleInputs) -> dict[str, nn.Module]:
    """Return the masked layers whose weight nothing but their own forward pass uses, by path.

    Raises:
        InputError: The model cannot be run on the example inputs.
    """
    masked = {
        path: module for path, module in model.named_modules() if get_mask(module) is not None
    }
    if not masked:
        return {}
    users, owners = (
        weight_users(trace_values(model, *real_inputs(model, example_inputs))),
        owner_counts(model),
    )
    return {
        path: module
        for path, module in masked.items()
        if users.get(f"{path}.weight" if path else "weight") == {path}
        and owners[id(module._parameters["weight"])] == 1
    }


def _in_blocks(mask: Tensor, groups: int) -> bool:
    """Return whether the non-zeros come in blocks of consecutive outputs."""
    if len(mask) // groups % BLOCK:
        return False
    blocks = mask.reshape(len(mask) // BLOCK, BLOCK, *mask.shape[1:])
    return torch.equal(blocks, blocks[:, :1].expand_as(blocks))
