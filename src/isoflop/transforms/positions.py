"""After which convolutions BatchNorm cannot normalise."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from isoflop.flops.fakes import run_on_copy
from isoflop.surgery import ExampleInputs


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

    def watch(fake: nn.Module, *_: Any) -> contextlib.AbstractContextManager[None]:
        found.clear()
        for path in paths:
            fake.get_submodule(path).register_forward_hook(
                lambda layer, inputs, output, path=path: note(path, layer, inputs, output)
            )
        return contextlib.nullcontext()

    run_on_copy(model, example_inputs, watch)
    return found
