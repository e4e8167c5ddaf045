"""Building layers like a given Linear or convolution, at other sizes."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import skip_init

from isoflop.surgery import copy_with_tensors

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class LayerShape:
    """A layer seen as `groups` equal matrices.

    Attributes:
        rows: Inputs of one group times the kernel's positions.
        columns: Outputs of one group.
        groups: Number of groups; 1 for a Linear.
        depthwise: Whether each output of a grouped convolution sees a single input channel.
    """

    rows: int
    columns: int
    groups: int
    depthwise: bool = False

    @classmethod
    def of(cls, layer: nn.Module) -> "LayerShape":
        """Read the shape of a Linear or convolution."""
        weight = layer.get_parameter("weight")
        if isinstance(layer, _ConvNd):
            channels = layer.in_channels // layer.groups
            return cls(
                channels * math.prod(layer.kernel_size),
                layer.out_channels // layer.groups,
                layer.groups,
                layer.groups > 1 and channels == 1,
            )
        return cls(weight.shape[1], weight.shape[0], 1)


def is_replaceable(module: nn.Module) -> bool:
    """Tell whether `module` is a Linear or an ordinary convolution."""
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def with_outputs(layer: nn.Module, outputs: int, *, bias: bool) -> nn.Module:
    """Return an uninitialised layer like `layer` with another number of outputs.

    The layer is copied, not constructed, so that subclasses keep their own forward pass.
    """

    def make(_module: nn.Module, _path: str, name: str, tensor: Tensor) -> Tensor:
        shape = (outputs, *tensor.shape[1:]) if name in ("weight", "bias") else tensor.shape
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

    source = copy.copy(layer)
    source._parameters = dict(layer._parameters)
    if not bias:
        source._parameters["bias"] = None
    new = copy_with_tensors(source, make)
    new.__dict__["out_channels" if isinstance(layer, _ConvNd) else "out_features"] = outputs
    return new


def pointwise(layer: nn.Module, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    """Return a Linear, or a 1×1 convolution with the groups of `layer`, of the given sizes."""
    weight = layer.get_parameter("weight")
    options = {"bias": bias, "device": weight.device, "dtype": weight.dtype}
    # Not constructed directly: that would draw weights, and so change the global random state.
    if isinstance(layer, _ConvNd):
        kind = _CONVOLUTIONS[weight.ndim - 2]
        return skip_init(kind, inputs, outputs, 1, groups=layer.groups, **options)
    return skip_init(nn.Linear, inputs, outputs, **options)


class Bias(nn.Module):
    """The bias of a transformed layer, added once, after its branches.

    Args:
        like: The bias of the layer that is replaced, shape `(outputs,)`.
        trailing: Dimensions that follow the channel dimension in the layer's output.
    """

    def __init__(self, like: Tensor, trailing: int) -> None:
        super().__init__()
        self.trailing = trailing
        self.bias = nn.Parameter(torch.empty_like(like))

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias to `x`."""
        return x + self.bias.reshape(-1, *[1] * self.trailing)


def outer_bias(layer: nn.Module) -> nn.Module:
    """Return a module that adds the bias of `layer`, or nothing if it has none."""
    bias = layer._parameters.get("bias")
    if bias is None:
        return nn.Identity()
    trailing = layer.get_parameter("weight").ndim - 2 if isinstance(layer, _ConvNd) else 0
    return Bias(bias, trailing)
