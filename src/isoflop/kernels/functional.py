"""Linear layers and convolutions whose weight is given by its non-zeros."""

import torch.nn.functional as F
from torch import Tensor

from isoflop.kernels.index import SparseIndex


def sparse_linear(
    x: Tensor, values: Tensor, index: SparseIndex, bias: Tensor | None = None
) -> Tensor:
    """Return ``x @ weight.T + bias`` for the weight that has `values` at the places of `index`.

    Args:
        x: (…, in).
        values: (nnz,), in the order of the index.
        index: Index of a weight of shape (out, in, 1, 1).
        bias: (out,).

    Returns:
        (…, out).
    """
    return F.linear(x, index.to_dense(values)[:, :, 0, 0], bias)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    index: SparseIndex,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Return the convolution with the weight that has `values` at the places of `index`.

    Args:
        x: (N, in, H, W).
        values: (nnz,), in the order of the index.
        index: Index of the weight; has the kernel size and the groups.
        bias: (out,).
        stride: Stride over height and width.
        padding: Zeros on either side of height and width.
        dilation: Spacing of the taps in height and width.

    Returns:
        (N, out, H', W').
    """
    return F.conv2d(x, index.to_dense(values), bias, stride, padding, dilation, index.groups)
