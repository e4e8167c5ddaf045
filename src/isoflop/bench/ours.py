"""How isoflop itself runs a masked model; the one place that decides it."""

from typing import Literal

from torch import Tensor, nn

from isoflop.kernels import SparseConv2d, SparseLinear
from isoflop.masks import named_masks
from isoflop.surgery import ExampleInputs, is_flipped, replace_modules


def ours(
    model: nn.Module,
    *,
    mode: Literal["inference", "training"],
    example_inputs: ExampleInputs,
) -> nn.Module:
    """Return the masked `model` in the form in which isoflop runs it.

    Args:
        model: The model, which is used up.
        mode: What it is to be fast at.
        example_inputs: Inputs of the size that it will get.
    """
    new = {}
    for _, module, parameter, mask in named_masks(model):
        if parameter == "weight" and (isinstance(module, nn.Linear) or is_flipped(module)):
            by_outputs = mask.t() if is_flipped(module) else mask
            new[module] = SparseLinear.from_dense(module, mask, rows=_rows(by_outputs))
        elif parameter == "weight" and isinstance(module, nn.Conv2d):
            new[module] = SparseConv2d.from_dense(module, mask, rows=_rows(mask, module.groups))
    return replace_modules(model, new).train(mode == "training")


def _rows(mask: Tensor, groups: int = 1) -> int:
    """Return 4 if the non-zeros come in whole blocks of four outputs, the first dimension, else 1."""
    if len(mask) // groups % 4:
        return 1
    blocks = mask.reshape(len(mask) // 4, 4, -1)
    return 4 if bool((blocks == blocks[:, :1]).all()) else 1
