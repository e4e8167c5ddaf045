"""Batch normalisation with the batch innermost, in training, as PyTorch operators.

PyTorch adds up a channel number by number; on the wide activations of sparse networks that took up to
a third of a training step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from isoflop.kernels.cpu import library


@custom_op("isoflop::batch_norm", mutates_args=())
def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the channels of a batch by their own mean and variance.

    Args:
        x: (N, C, H, W), float32 on the CPU, not empty, the batch innermost.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        eps: What is added to the variance.

    Returns:
        y, as x; the mean and the biased variance of each channel, (C,), which have no gradient.
    """
    y, mean, variance = _outputs(x)
    _call("normalize", x, _row(weight), _row(bias), eps, y, mean, variance)
    return y, mean, variance


@custom_op("isoflop::batch_norm_gradient", mutates_args=())
def batch_norm_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; all but `dy` is as for `batch_norm`."""
    dx, dweight, dbias = _outputs(x)
    _call("normalize_gradient", x, dy, _row(weight), mean, variance, eps, dx, dweight, dbias)
    return dx, dweight, dbias


@batch_norm.register_fake
def _(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x)


@batch_norm_gradient.register_fake
def _(dy: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.eps = inputs
    _, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.save_for_backward(x, weight, mean, variance)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, mean, variance = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Gradients that are to be differentiated themselves: PyTorch knows how.
        scale = (variance + ctx.eps).rsqrt()
        wanted = [needed for needed, _ in zip(ctx.needs_input_grad, "xwb", strict=False)]
        gradients = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, None, None, mean, scale, True, ctx.eps, wanted
        )
    else:
        dy = dy if dy.stride() == x.stride() else torch.empty_like(x).copy_(dy)
        gradients = torch.ops.isoflop.batch_norm_gradient(dy, x, weight, mean, variance, ctx.eps)
    return *(g if w else None for g, w in zip(gradients, ctx.needs_input_grad, strict=False)), None


batch_norm.register_autograd(_backward, setup_context=_keep)


def _outputs(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _row(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _call(name: str, *arguments: Tensor | float | None) -> None:
    """Call a kernel, which fills the last tensors."""
    passed = (torch.to_dlpack(a) if isinstance(a, Tensor) else a for a in arguments)
    getattr(library.native(), name)(*passed, threads=torch.get_num_threads())
