"""isoflop's own contestant: the sparse layers on isoflop's kernels, where these are faster."""

from typing import Literal

from torch import nn

from isoflop.kernels import accelerate, accelerate_, freeze
from isoflop.kernels.autotune.candidates import sparse_layer
from isoflop.masks import named_masks
from isoflop.surgery import ExampleInputs, replace_modules


def ours(
    model: nn.Module,
    *,
    mode: Literal["inference", "training"],
    example_inputs: ExampleInputs,
    allow_bf16: bool = False,
) -> nn.Module:
    """Return the masked `model` in the form in which isoflop runs it.

    Args:
        model: The model, which is used up.
        mode: What it is to be fast at.
        example_inputs: Inputs of the size that it will get.
        allow_bf16: As for `accelerate`.
    """
    if mode == "inference":
        frozen = freeze(model.eval(), example_inputs=example_inputs)
        return accelerate(frozen, example_inputs=example_inputs, allow_bf16=allow_bf16)[0]
    new = {
        module: sparse
        for _, module, parameter, mask in named_masks(model)
        if parameter == "weight" and (sparse := sparse_layer(module, mask)) is not None
    }
    model = replace_modules(model, dict(new)).train()
    accelerate_(model, example_inputs=example_inputs, allow_bf16=allow_bf16)
    return model
