"""What the kernels compute, by PyTorch on a dense weight that lives for one call."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from isoflop.errors import KernelError
from isoflop.kernels.cpu.index import SparseIndex

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}
"""The activations that a kernel can apply to its output; GELU is the exact one."""


def dense_linear(
    x: Tensor,
    values: Tensor,
    index: SparseIndex,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Return what `sparse_linear` does."""
    weight = index.to_dense(values)[:, :, 0, 0]
    return with_epilogue(F.linear(x, weight, bias), residual, activation)


def dense_conv2d(
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
    """Return what `sparse_conv2d` does."""
    weight = index.to_dense(values)
    y = F.conv2d(x, weight, bias, stride, padding, dilation, index.groups)
    return with_epilogue(y, residual, activation)


def with_epilogue(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    """Return ``activation(y + residual)``."""
    if activation not in ACTIVATIONS:
        raise KernelError(
            f"A kernel applies no activation {activation!r}; it knows {', '.join(ACTIVATIONS)}."
        )
    if residual is not None:
        if residual.shape != y.shape:
            raise KernelError(
                f"A residual of shape {tuple(residual.shape)} cannot be added to an output of shape "
                f"{tuple(y.shape)}: expand it first."
            )
        y = y + residual
    return ACTIVATIONS[activation](y)
