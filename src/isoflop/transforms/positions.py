"""At how many positions of a sample convolutions work."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from isoflop.fakes import run_on_copy
from isoflop.surgery import ExampleInputs


def positions_per_sample(
    model: nn.Module, example_inputs: ExampleInputs, layers: Mapping[str, nn.Module]
) -> dict[str, int]:
    """Return at how many positions each convolution multiplies, for one sample, by its path.

    Those are the positions of the output, and of the input of a transposed convolution. Of several
    calls the one with the fewest counts. Other layers are left out.
    """
    found: dict[str, int] = {}
    paths = [path for path, layer in layers.items() if isinstance(layer, _ConvNd)]
    if not paths:
        return found

    def note(path: str, layer: Any, inputs: Any, output: Any) -> None:
        tensor = inputs[0] if layer.transposed and inputs else output
        if isinstance(tensor, Tensor):
            count = math.prod(tensor.shape[-(layer.weight.ndim - 2) :])
            found[path] = min(count, found.get(path, count))

    def watch(fake: nn.Module, *_: Any) -> contextlib.AbstractContextManager[None]:
        found.clear()
        for path in paths:
            fake.get_submodule(path).register_forward_hook(
                lambda layer, inputs, output, path=path: note(path, layer, inputs, output)
            )
        return contextlib.nullcontext()

    run_on_copy(model, example_inputs, watch)
    return found
