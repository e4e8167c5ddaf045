"""Building layers like a given Linear or convolution, at other sizes.

Four kinds of layer can be replaced: Linear, its twin with a transposed weight that GPT-2 uses,
convolutions and transposed convolutions, grouped ones included. This file knows how they differ;
the transforms do not.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import skip_init

from isoflop.flops.copies import copy_with_tensors, keep_marks
from isoflop.surgery import is_fan_in_fan_out
from isoflop.transforms.replacement import HOOKS

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerShape:
    """A layer seen as `groups` equal matrices.

    A convolution multiplies each output position by one `(cin kh kw, cout)` matrix (paper, appendix
    A.1), a transposed one each input position by a `(cin, cout kh kw)` matrix.

    Attributes:
        rows: Inputs of one group, times the kernel's positions of a convolution.
        columns: Outputs of one group, times the kernel's positions of a transposed convolution.
        groups: Number of groups; 1 for a Linear.
        depthwise: Whether each output of a grouped convolution sees a single input channel.
    """

    rows: int
    columns: int
    groups: int
    depthwise: bool = False

    @classmethod
    def of(cls, layer: nn.Module) -> "LayerShape":
        """Read the shape of a layer that `is_replaceable`."""
        weight = layer.get_parameter("weight")
        if isinstance(layer, _ConvNd):
            inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
            kernel = math.prod(layer.kernel_size)
            rows, columns = (1, kernel) if layer.transposed else (kernel, 1)
            depthwise = layer.groups > 1 and inputs == 1
            return cls(inputs * rows, outputs * columns, layer.groups, depthwise)
        inputs, outputs = weight.shape if is_fan_in_fan_out(layer) else reversed(weight.shape)
        return cls(inputs, outputs, 1)


def is_replaceable(module: nn.Module) -> bool:
    """Tell whether `module` is a Linear or a convolution, transposed ones included."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
    return isinstance(module, kinds) or is_fan_in_fan_out(module)


def outputs_of(layer: nn.Module) -> int:
    """Return the number of output features or channels of a Linear or convolution."""
    if isinstance(layer, _ConvNd):
        return layer.out_channels
    return layer.get_parameter("weight").shape[0]


def unflipped(layer: nn.Module) -> nn.Module:
    """Return `layer`, or in place of a flipped one the uninitialised Linear of the same sizes."""
    if not is_fan_in_fan_out(layer):
        return layer
    weight = layer.get_parameter("weight")
    new = skip_init(nn.Linear, *weight.shape, device=weight.device, dtype=weight.dtype)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(layer.get_parameter(name).requires_grad)
        keep_marks(layer.get_parameter(name), parameter)
        if name == "bias":  # a single number keeps its value, see `initialize`
            parameter.data.copy_(layer.get_parameter(name))
    return new


def like(layer: nn.Module, first: int | None = None) -> nn.Module:
    """Return an uninitialised layer like `layer`, without its bias.

    The layer is copied, not constructed, so that subclasses keep their own forward pass.

    Args:
        layer: A Linear or convolution.
        first: Another size of its weight's first dimension: the number of its outputs, or of a
            transposed convolution's inputs.
    """
    transposed = isinstance(layer, _ConvTransposeNd)

    def make(_module: nn.Module, _path: str, name: str, tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if first is not None and name == "weight":
            shape[0] = first
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

    source = copy.copy(layer)
    source._parameters = {**layer._parameters, "bias": None}
    # Those of the layer are around the whole of what takes its place.
    source.__dict__ |= {name: vars(nn.Module())[name] for name in HOOKS}
    new = copy_with_tensors(source, make)
    if first is not None:
        ends = ("in", "out") if transposed else ("out", "in")
        kind = "channels" if isinstance(layer, _ConvNd) else "features"
        new.__dict__[f"{ends[0]}_{kind}"] = first
    return new


def factors(layer: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:
    """Return the two uninitialised layers U and V, without bias, that `layer` factorises into.

    U has the layer's kernel, stride and padding and V is 1×1 (paper, appendix A.1). The other way
    round for a transposed convolution, whose work is done at the resolution of its input. Each has
    the layer's groups.

    Args:
        layer: A Linear or convolution.
        rank: Features or channels between the two, over all groups.
    """
    if isinstance(layer, _ConvTransposeNd):
        return _pointwise(layer, layer.in_channels, rank), like(layer, rank)
    return like(layer, rank), _pointwise(layer, rank, outputs_of(layer))


def _pointwise(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """Return a Linear, or a 1×1 convolution with the groups of `layer`, of the given sizes."""
    weight = layer.get_parameter("weight")
    options = {"bias": False, "device": weight.device, "dtype": weight.dtype}
    # Not constructed directly: that would draw weights, and so change the global random state.
    if isinstance(layer, _ConvNd):
        kind = _CONVOLUTIONS[weight.ndim - 2]
        new = skip_init(kind, inputs, outputs, 1, groups=layer.groups, **options)
    else:
        new = skip_init(nn.Linear, inputs, outputs, **options)
    keep_marks(weight, new.get_parameter("weight"))
    return new


def through_factors(
    down: nn.Module, between: nn.Module | None, up: nn.Module, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Run both `factors`, the one that is like the layer with the arguments that the layer takes."""
    transposed = isinstance(up, _ConvTransposeNd)
    x = down(x) if transposed else down(x, *args, **kwargs)
    x = x if between is None else between(x)
    return up(x, *args, **kwargs) if transposed else up(x)
