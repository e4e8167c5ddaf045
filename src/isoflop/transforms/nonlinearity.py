"""The non-linearities that a transform may put inside a layer (paper, section 3.2 and C.2).

Each maps the layer that is transformed and its number of channels to a module. What is after a
Linear normalises and acts on the last dimension, what is after a convolution on the second.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.conv import _ConvNd

from isoflop.errors import IsoflopError
from isoflop.registry import Registry

Nonlinearity = Callable[[nn.Module, int], nn.Module]
"""Maps the layer that is transformed and a number of channels to a module."""

NONLINEARITIES: Registry[Nonlinearity] = Registry("nonlinearity")

_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@NONLINEARITIES.register("auto")
def auto(layer: nn.Module, channels: int) -> nn.Module:
    """BatchNorm and ReLU after a convolution, as in the paper; ReLU alone after a Linear.

    A Linear gets no normalisation of its own: in a transformer, the LayerNorm of the block already
    normalises, and statistics over "the batch" of tokens, some of them padding, have no single
    meaning. Where one is wanted none the less, choose ``"layernorm_gelu"``, or
    ``"batchnorm_relu"`` in a network that is fed vectors.

    In deep networks of linear bottlenecks, such as EfficientNet, as many ReLUs more let the first
    gradients of small batches grow by orders of magnitude; ``"silu"`` does not.
    """
    return batchnorm_relu(layer, channels) if isinstance(layer, _ConvNd) else nn.ReLU()


@NONLINEARITIES.register("none")
def none(layer: nn.Module, channels: int) -> nn.Module:
    """Nothing: the linear ablation of table 7."""
    return nn.Identity()


@NONLINEARITIES.register("batchnorm_relu")
def batchnorm_relu(layer: nn.Module, channels: int) -> nn.Module:
    """BatchNorm and ReLU; after a Linear, for inputs `(B, Din)` only."""
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


@NONLINEARITIES.register("layernorm_gelu")
def layernorm_gelu(layer: nn.Module, channels: int) -> nn.Module:
    """LayerNorm over the channels and GELU, as in a transformer; after a Linear only.

    Raises:
        IsoflopError: The layer is a convolution.
    """
    if isinstance(layer, _ConvNd):
        raise IsoflopError(
            "nonlinearity 'layernorm_gelu' normalises the last dimension, but the channels of a "
            f"{type(layer).__name__} are the second. Use 'batchnorm_relu' for convolutions, or "
            "exclude them."
        )
    weight = layer.get_parameter("weight")
    norm = nn.LayerNorm(channels, device=weight.device, dtype=weight.dtype)
    return nn.Sequential(norm, nn.GELU())
