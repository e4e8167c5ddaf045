"""After which convolutions BatchNorm cannot normalise."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from isoflop.copies import copy_with_tensors
from isoflop.fakes import (
    RunningModules,
    fake_inputs,
    fake_like,
    fake_mode,
    follow_rules,
    run_on_fakes,
    unfused,
)
from isoflop.surgery import ExampleInputs, normalize_inputs


def without_norm(
    model: nn.Module, example_inputs: ExampleInputs, layers: Mapping[str, nn.Module]
) -> set[str]:
    """Return the paths of the convolutions after which BatchNorm cannot stand.

    Those multiply at one position per sample, of the output, or of the input of a transposed
    convolution; or their input has no batch. Of several calls one is enough.
    """
    found: set[str] = set()
    paths = [path for path, layer in layers.items() if isinstance(layer, _ConvNd)]
    if not paths:
        return found

    def note(path: str, layer: Any, inputs: Any, output: Any) -> None:
        tensor = inputs[0] if layer.transposed and inputs else output
        if isinstance(tensor, Tensor):
            unbatched = tensor.ndim < layer.weight.ndim
            if unbatched or math.prod(tensor.shape[2:]) == 1:
                found.add(path)

    args, kwargs = normalize_inputs(model, example_inputs)
    with torch.no_grad(), unfused(), fake_mode() as mode:
        fake = copy_with_tensors(model, lambda _module, _path, _name, tensor: fake_like(tensor))
        fake.train().eval()  # see `isoflop.flops.trace`
        follow_rules(fake)
        for path in paths:
            fake.get_submodule(path).register_forward_hook(
                lambda layer, inputs, output, path=path: note(path, layer, inputs, output)
            )
        args, kwargs = fake_inputs(mode, (args, kwargs))
        run_on_fakes(fake, args, kwargs, RunningModules(fake))
    return found
