"""Linear layers and convolutions whose weight is given by its non-zeros.

Both run the compiled kernels on float32 tensors of the CPU. Elsewhere, and without compiled kernels,
they build the dense weight and let PyTorch multiply. Under `torch.autocast("cpu", torch.bfloat16)` the
kernels multiply in bfloat16 where the processor has instructions for it; they take tensors of any
floating type there, and return float32.
"""

import torch
from torch import Tensor

from isoflop.errors import KernelError
from isoflop.kernels.cpu import library, ops
from isoflop.kernels.cpu.index import SparseIndex
from isoflop.kernels.fuse.dense import ACTIVATIONS, dense_conv2d, dense_linear

__all__ = ["ACTIVATIONS", "sparse_conv2d", "sparse_linear"]


def sparse_linear(
    x: Tensor,
    values: Tensor,
    index: SparseIndex,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
    bfloat16: bool = False,
) -> Tensor:
    """Return ``activation(x @ weight.T + bias + residual)``.

    The weight has `values` at the places of `index`.

    Args:
        x: (…, in).
        values: (nnz,), in the order of the index.
        index: Index of a weight of shape (out, in, 1, 1).
        bias: (out,).
        residual: (…, out).
        activation: One of `ACTIVATIONS`.
        bfloat16: Whether `x` and `values`, and in the backward pass the gradient, may be rounded to
            bfloat16 before they are multiplied, which is faster where the processor has
            instructions for it, and changes nothing elsewhere. Sums are float32.

    Returns:
        (…, out).

    Raises:
        KernelError: The arguments do not fit together.
    """
    _check(activation)
    bfloat16 |= _autocast_to(torch.bfloat16)
    x, values, bias, residual = _uncast(x, values, bias, residual)
    if not library.runs(x, values, bias, residual):
        return dense_linear(x, values, index, bias, residual=residual, activation=activation)
    after, activation = _unfused(activation, x, values, bias, residual)
    y = ops.linear(
        x,
        values,
        index.offsets,
        index.starts,
        index.t_entries,
        index.t_starts,
        index.shape,
        (index.rows, index.block_in, index.block_out),
        bfloat16 and library.has_bfloat16(),
        bias,
        residual,
        activation,
    )
    return ACTIVATIONS[after](y)


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
    bfloat16: bool = False,
) -> Tensor:
    """Return activation(convolution + bias + residual).

    The weight has `values` at the places of `index`. The compiled kernels return the batch
    innermost, with the strides of a contiguous (out, H', W', N).

    Args:
        x: (N, in, H, W).
        values: (nnz,), in the order of the index.
        index: Index of the weight; has the kernel size and the groups.
        bias: (out,).
        stride: Stride over height and width.
        padding: Zeros on either side of height and width.
        dilation: Spacing of the taps in height and width.
        residual: (N, out, H', W').
        activation: One of `ACTIVATIONS`.
        bfloat16: Whether `x` and `values`, and in the backward pass the gradient, may be rounded to
            bfloat16 before they are multiplied, which is faster where the processor has
            instructions for it, and changes nothing elsewhere. Sums are float32.

    Returns:
        (N, out, H', W').

    Raises:
        KernelError: The arguments do not fit together.
    """
    _check(activation)
    bfloat16 |= _autocast_to(torch.bfloat16)
    x, values, bias, residual = _uncast(x, values, bias, residual)
    if not library.runs(x, values, bias, residual):
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
    after, activation = _unfused(activation, x, values, bias, residual)
    y = ops.conv2d(
        x,
        values,
        index.offsets,
        index.starts,
        index.t_entries,
        index.t_starts,
        index.shape,
        index.groups,
        (index.rows, index.block_in, index.block_out),
        stride,
        padding,
        dilation,
        bfloat16 and library.has_bfloat16(),
        bias,
        residual,
        activation,
    )
    return ACTIVATIONS[after](y)


def _check(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise KernelError(
            f"There is no activation {activation!r}; the kernels know {', '.join(ACTIVATIONS)}."
        )


def _autocast_to(dtype: torch.dtype) -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is dtype


def _uncast(
    x: Tensor, values: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return what the kernels can work on of tensors that autocast has made of other types."""
    if not (torch.is_autocast_enabled("cpu") and library.available() and x.is_cpu):
        return x, values, bias, residual
    bias = None if bias is None else bias.float()
    residual = None if residual is None else residual.float()
    return x.float(), values.float(), bias, residual


def _unfused(activation: str, *tensors: Tensor | None) -> tuple[str, str]:
    """Return the activation to apply after the operator and the one inside it."""
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return (activation, "none") if training else ("none", activation)
