"""Activations with the batch innermost: (N, C, H, W) in the strides of a contiguous (C, H, W, N).

The sparse convolutions compute in this layout. Element-wise operations of PyTorch keep it by
themselves; batch normalisation, pooling and dense convolutions would convert, slowly. The modules
here do neither: they look at the tensor in a way for which PyTorch has a fast path.
"""

from typing import Any

import torch
from torch import Tensor, nn

from isoflop.kernels.cpu import library
from isoflop.kernels.cpu.norm import batch_norm
from isoflop.surgery import recast


def is_batch_innermost(x: Tensor) -> bool:
    """Return whether `x`, (N, C, H, W), lies in memory as a contiguous (C, H, W, N) does.

    If the batch or all other sizes are 1, this and the contiguous layout are the same.
    """
    return x.ndim == 4 and x.permute(1, 2, 3, 0).is_contiguous()


def to_batch_innermost(x: Tensor) -> Tensor:
    """Return `x`, (N, C, H, W), with the batch innermost; its gradient gets the layout of `x`."""
    return x if is_batch_innermost(x) else _Transposed.apply(x, True)


def from_batch_innermost(x: Tensor) -> Tensor:
    """Return a contiguous tensor if `x` has the batch innermost, else `x` as it is."""
    return _Transposed.apply(x, False) if _needs_view(x) else x


def layout_modules(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return a replacement for each module that would convert the layout.

    The replacements have the parameters, buffers and hooks of the modules, so optimizers and state
    dicts do not notice.
    """
    return {
        module: recast(module, _KEEPING[type(module)])
        for module in model.modules()
        if type(module) in _KEEPING and not getattr(module, "return_indices", False)
    }


def out_of_place_modules(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return a replacement for each activation that works in place, which does not.

    The modules above return views, and autograd copies a view that is changed in place.
    """
    new: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if type(module) in _ACTIVATIONS and module.inplace:
            other: Any = recast(module, type(module))
            other.inplace = False
            new[module] = other
    return new


class LayoutBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that keeps the batch innermost."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        if not _needs_view(input):
            return super().forward(input)
        own = self.training or self.running_mean is None
        if own and input.numel() > input.shape[1] and library.runs(input, self.weight, self.bias):
            y, mean, variance = batch_norm(input, self.weight, self.bias, self.eps)
            if self.track_running_stats and self.running_mean is not None:
                self._follow(mean, variance, input.numel() // input.shape[1])
            return y
        n, c, h, w = input.shape
        # One sample of N times as many pixels has the same statistics.
        y = super().forward(input.permute(1, 2, 3, 0).view(1, c, h * w, n))
        return y.reshape(c, h, w, n).permute(3, 0, 1, 2)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics, as PyTorch does: the variance is the unbiased one."""
        assert self.running_mean is not None
        assert self.running_var is not None
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum or 0.0)
        self.running_var.lerp_(variance * (count / (count - 1)), momentum or 0.0)


class _LayoutPool(nn.Module):
    """Mixin for pooling: with channels and batch exchanged, the channels lie innermost."""

    def forward(self, input: Tensor) -> Any:
        """Pool (N, C, H, W)."""
        if not _needs_view(input):
            return super().forward(input)
        return super().forward(input.transpose(0, 1)).transpose(0, 1)


class LayoutMaxPool2d(_LayoutPool, nn.MaxPool2d):
    """MaxPool2d that keeps the batch innermost."""


class LayoutAvgPool2d(_LayoutPool, nn.AvgPool2d):
    """AvgPool2d that keeps the batch innermost."""


class LayoutAdaptiveMaxPool2d(_LayoutPool, nn.AdaptiveMaxPool2d):
    """AdaptiveMaxPool2d that keeps the batch innermost."""


class LayoutAdaptiveAvgPool2d(_LayoutPool, nn.AdaptiveAvgPool2d):
    """AdaptiveAvgPool2d that keeps the batch innermost."""


class LayoutConv2d(nn.Conv2d):
    """A dense convolution between sparse ones: it transposes to PyTorch's layout, and back.

    Attributes:
        batch_innermost: Whether the output has the batch innermost.
    """

    batch_innermost: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W')."""
        y = super().forward(from_batch_innermost(input))
        return to_batch_innermost(y) if self.batch_innermost else y


_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Dropout)

_KEEPING: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: LayoutBatchNorm2d,
    nn.MaxPool2d: LayoutMaxPool2d,
    nn.AvgPool2d: LayoutAvgPool2d,
    nn.AdaptiveMaxPool2d: LayoutAdaptiveMaxPool2d,
    nn.AdaptiveAvgPool2d: LayoutAdaptiveAvgPool2d,
    nn.Conv2d: LayoutConv2d,
}


class _Transposed(torch.autograd.Function):
    """Between contiguous and batch innermost; the gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, innermost: bool) -> Tensor:
        ctx.innermost = innermost
        return _transposed(x, innermost)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (grad,) = grads
        return _transposed(grad, not ctx.innermost), None


def _transposed(x: Tensor, innermost: bool) -> Tensor:
    # As matrices, because PyTorch transposes these by tiles, and other permutations by elements.
    n, c, h, w = x.shape
    if innermost:
        return x.reshape(n, c * h * w).t().contiguous().view(c, h, w, n).permute(3, 0, 1, 2)
    return x.permute(1, 2, 3, 0).reshape(c * h * w, n).t().contiguous().view(n, c, h, w)


def _needs_view(x: Tensor) -> bool:
    return is_batch_innermost(x) and not x.is_contiguous()
