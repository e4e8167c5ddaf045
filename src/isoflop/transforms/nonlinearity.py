"""The non-linearities that a transform may put inside a layer (paper, section 3.2 and C.2)."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.conv import _ConvNd

from isoflop.registry import Registry

Nonlinearity = Callable[[nn.Module, int], nn.Module]
"""Maps the layer that is transformed and a number of channels to a module."""

NONLINEARITIES: Registry[Nonlinearity] = Registry("nonlinearity")

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@NONLINEARITIES.register("auto")
def auto(layer: nn.Module, channels: int) -> nn.Module:
    """BatchNorm and ReLU after a convolution, as in the paper; ReLU alone after a Linear.

    A Linear is used on tokens as well as on batches of vectors, so statistics over "the batch"
    have no single meaning there.
    """
    return batchnorm_relu(layer, channels) if isinstance(layer, _ConvNd) else nn.ReLU()


@NONLINEARITIES.register("none")
def none(layer: nn.Module, channels: int) -> nn.Module:
    """Nothing: the linear ablation of table 7."""
    return nn.Identity()


@NONLINEARITIES.register("batchnorm_relu")
def batchnorm_relu(layer: nn.Module, channels: int) -> nn.Module:
    """BatchNorm and ReLU."""
    weight = layer.get_parameter("weight")
    dims = weight.ndim - 2 if isinstance(layer, _ConvNd) else 1
    norm = _BATCH_NORMS[dims](channels, device=weight.device, dtype=weight.dtype)
    return nn.Sequential(norm, nn.ReLU())


@NONLINEARITIES.register("relu")
def relu(layer: nn.Module, channels: int) -> nn.Module:
    """ReLU."""
    return nn.ReLU()


@NONLINEARITIES.register("gelu")
def gelu(layer: nn.Module, channels: int) -> nn.Module:
    """GELU."""
    return nn.GELU()


@NONLINEARITIES.register("silu")
def silu(layer: nn.Module, channels: int) -> nn.Module:
    """SiLU."""
    return nn.SiLU()
