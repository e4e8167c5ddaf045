"""Convolutions that store and compute their non-zeros only."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from isoflop.errors import KernelError
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.cpu.layout import from_batch_innermost, to_batch_innermost
from isoflop.kernels.cpu.library import is_transformed
from isoflop.kernels.cpu.variants import VARIANTS
from isoflop.kernels.fuse.dense import with_epilogue


class SparseConv2d(SparseLayer, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A convolution that stores and computes its non-zeros only.

    Attributes:
        batch_innermost: Whether the dense backend returns that layout, as the sparse one does.
    """

    batch_innermost: bool = False
    stride: tuple[int, int]
    padding: tuple[int, int]  # pyright: ignore[reportIncompatibleVariableOverride]
    dilation: tuple[int, int]

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, mask: Tensor, *, rows: int = 1) -> "SparseConv2d":
        """Return the sparse form of `layer`; weights off `mask` are left out.

        Args:
            layer: The convolution; its padding must be zeros.
            mask: Boolean, shaped like the weight.
            rows: 4 if the non-zeros come in blocks of four consecutive output channels, else 1.

        Raises:
            KernelError: The padding is not by zeros, or not the same on both sides.
        """
        if not symmetric_padding(layer):
            raise KernelError(
                f"A sparse convolution pads with zeros, as many on either side; this one has padding "
                f"{layer.padding!r} by {layer.padding_mode!r}. Keep the layer dense."
            )
        sparse = cls(layer.weight, mask, groups=layer.groups, rows=rows)
        sparse.in_channels, sparse.out_channels = layer.in_channels, layer.out_channels
        sparse.kernel_size, sparse.groups = sparse._shape[2:], layer.groups
        sparse.stride, sparse.dilation = _pair(layer.stride), _pair(layer.dilation)
        sparse.padding, sparse.padding_mode = _padding(layer), "zeros"
        sparse.transposed, sparse.output_padding = False, (0, 0)
        sparse.register_parameter("bias", layer._parameters.get("bias"))
        return sparse.train(layer.training)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W'); a residual is added before the activation.

        As with PyTorch's, the N may be missing.
        """
        x = input
        if x.ndim == 3:
            return self.forward(x[None], None if residual is None else residual[None])[0]
        stride, padding, dilation = self.stride, self.padding, self.dilation
        convolve = VARIANTS[self.backend].conv2d
        if convolve is None or is_transformed(x, self.values):
            x = from_batch_innermost(x)
            y = F.conv2d(x, self._live_weight(), self.bias, stride, padding, dilation, self.groups)
            y = with_epilogue(y, residual, self.activation)
            return to_batch_innermost(y) if self.batch_innermost else y
        y = convolve(
            x,
            self.values,
            self.index,
            self.bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            residual=residual,
            activation=self.activation,
        )
        return self._observed(x, y)

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return the gradient of the weight, zeros included."""
        dtype = self.values.dtype
        # PyTorch annotates these as integers, but takes pairs.
        stride: Any = self.stride
        padding: Any = self.padding
        dilation: Any = self.dilation
        return conv2d_weight(
            x.to(dtype), self._shape, dy.to(dtype), stride, padding, dilation, self.groups
        )

    def input_gradient(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        """Return what the gradient of the input would be with a dense `weight`."""
        stride: Any = self.stride
        padding: Any = self.padding
        dilation: Any = self.dilation
        dx = conv2d_input(
            x.shape, weight, dy.to(weight.dtype), stride, padding, dilation, self.groups
        )
        return dx.to(x.dtype)

    def to_dense(self) -> nn.Conv2d:
        """Return the dense layer with the same weight, zeros included."""
        layer = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            _pair(self.kernel_size),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=False,
            device="meta",  # where it draws no random numbers
        )
        weight = self.index.to_dense(self.values.detach())
        layer.weight = nn.Parameter(weight, self.values.requires_grad)
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return sizes and non-zeros."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, nnz={self.nnz}, bias={self.bias is not None}"
        )

    def _matrix_shape(self) -> tuple[int, ...]:
        return self._shape


def symmetric_padding(layer: nn.Conv2d) -> bool:
    """Tell whether a convolution pads with zeros, as many on either side."""
    odd = any(d * (k - 1) % 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    return layer.padding_mode == "zeros" and not (layer.padding == "same" and odd)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        height, width = (
            d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        )
        return height, width
    assert not isinstance(layer.padding, str)
    return _pair(layer.padding)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    first, second = value
    return first, second
