"""Linear layers and convolutions whose weight is given by its non-zeros."""

from torch import Tensor

from isoflop.kernels.dense import ACTIVATIONS, dense_conv2d, dense_linear
from isoflop.kernels.index import SparseIndex

__all__ = ["ACTIVATIONS", "sparse_conv2d", "sparse_linear"]


def sparse_linear(
    x: Tensor,
    values: Tensor,
    index: SparseIndex,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Return ``activation(x @ weight.T + bias + residual)``.

    The weight has `values` at the places of `index` and zeros elsewhere.

    Args:
        x: (…, in).
        values: (nnz,), in the order of the index.
        index: Index of a weight of shape (out, in, 1, 1).
        bias: (out,).
        residual: (…, out), added before the activation.
        activation: A name in `ACTIVATIONS`.

    Returns:
        (…, out).

    Raises:
        KernelError: The activation is not known, or the residual has another shape.
    """
    return dense_linear(x, values, index, bias, residual=residual, activation=activation)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    index: SparseIndex,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Return ``activation(convolution(x) + bias + residual)``.

    The weight has `values` at the places of `index` and zeros elsewhere.

    Args:
        x: (N, in, H, W).
        values: (nnz,), in the order of the index.
        index: Index of the weight; has the kernel size and the groups.
        bias: (out,).
        stride: Stride over height and width.
        padding: Zeros on either side of height and width.
        dilation: Spacing of the taps in height and width.
        residual: (N, out, H', W'), added before the activation.
        activation: A name in `ACTIVATIONS`.

    Returns:
        (N, out, H', W').

    Raises:
        KernelError: The activation is not known, or the residual has another shape.
    """
    return dense_conv2d(
        x,
        values,
        index,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        residual=residual,
        activation=activation,
    )
