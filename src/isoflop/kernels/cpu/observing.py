"""How the observer of a sparse layer sees the gradient of its dense weight."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from isoflop.kernels.cpu.layers import SparseLayer


class Probe(torch.autograd.Function):
    """A dense weight of zeros, of which the gradient goes to the observer of a layer.

    It hangs on the values, so that it has a gradient in exactly the passes in which they have one.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: "SparseLayer") -> Tensor:
        """Return the zeros."""
        ctx.layer = layer
        return values.new_zeros(()).expand(layer.dense_shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Hand the gradient to the observer."""
        (gradient,) = grad_outputs
        observer = ctx.layer.observer
        if observer is not None:
            observer(gradient.detach())
        return None, None


class _Observed(torch.autograd.Function):
    """Hands the output of a layer on, as if the product with a probe had been added to it.

    The backward pass computes the gradient of the probe, and, where it is to be differentiated again,
    all else that depends on it: so the probe has its share of gradients of any order.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, probe: Tensor, layer: "SparseLayer") -> Tensor:
        ctx.save_for_backward(x, probe)
        ctx.layer = layer
        # A copy, since a view that comes out of a function must not be changed in place, as the
        # activation that follows may do.
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (dy,) = grad_outputs
        x, probe = ctx.saved_tensors
        dx = None
        if torch.is_grad_enabled() and ctx.needs_input_grad[1]:
            dx = ctx.layer.input_gradient(x, dy, probe)
        return dy, dx, ctx.layer.weight_gradient(x, dy), None


@torch.compiler.disable
def observed(layer: "SparseLayer", x: Tensor, y: Tensor) -> Any:
    """Return the output `y` of a layer for `x`, through which the observer sees the gradient."""
    probe = layer._probe()
    return y if probe is None else _Observed.apply(y, x, probe, layer)
