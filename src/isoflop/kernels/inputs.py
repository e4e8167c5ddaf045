"""Inputs to run a model on, and whether two runs agree."""

from typing import Any

import torch
from torch import Tensor, nn

from isoflop.fakes import plain_output
from isoflop.nests import map_tensors, tensors_in
from isoflop.surgery import ExampleInputs, normalize_inputs


def real_inputs(
    model: nn.Module, example_inputs: ExampleInputs
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example inputs as `(args, kwargs)`; tensors without values get random ones.

    Raises:
        InputError: They are no example inputs.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device

    def real(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        generator = torch.Generator(device).manual_seed(0)
        values = torch.randn(tensor.shape, generator=generator, device=device)
        return values.to(tensor.dtype)

    args, kwargs = normalize_inputs(model, example_inputs)
    return map_tensors(args, real), map_tensors(kwargs, real)


def output_tensors(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return all tensors of the model's output, in evaluation and without gradients."""
    # Models may change their inputs in place.
    args, kwargs = map_tensors((args, kwargs), torch.clone)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            output = plain_output(model(*args, **kwargs))
    finally:
        for module, mode in training.items():
            module.training = mode
    return tensors_in(output)


def outputs_agree(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether two outputs are the same but for rounding, relative to the largest value."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return False
    for a, b in zip(ours, theirs, strict=True):
        if not b.dtype.is_floating_point:
            if not torch.equal(a, b):
                return False
            continue
        tolerance = torch.finfo(b.dtype).eps ** 0.5
        scale = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
        if not torch.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True):
            return False
    return True
