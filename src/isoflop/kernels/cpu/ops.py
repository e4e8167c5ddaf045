"""The kernels as PyTorch operators, with gradients and with versions for tensors without values.

The index of a weight is passed as its four tensors and three groups of integers: the shape of the
weight, its groups, and the tiling ``(rows, block_in, block_out)``. With `bfloat16`, factors are rounded
to that type before they are multiplied; all tensors, and the sums, are float32 nevertheless.

Forward pass, gradient of the input and gradient of the values are operators each, and the gradients of
each are the other two: a product of three things that is linear in each. So they can be differentiated
any number of times.

Activations that the convolutions make lie with the batch innermost: logical (N, C, H, W), strides
of a contiguous (C, H, W, N). The gradient of an input lies as the input does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from isoflop.errors import KernelError
from isoflop.kernels.cpu import library
from isoflop.kernels.cpu.index import SparseIndex
from isoflop.kernels.cpu.layout import to_batch_innermost

Ints = Sequence[int]
_ONE = (1, 1)
_ZERO = (0, 0)


# ---- convolution


@custom_op("isoflop::sparse_conv2d", mutates_args=())
def conv2d(
    x: Tensor,
    values: Tensor,
    offsets: Tensor,
    starts: Tensor,
    t_entries: Tensor,
    t_starts: Tensor,
    shape: Ints,
    groups: int,
    tiling: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    bfloat16: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """Return activation(convolution of x + bias + residual), (N, out, H', W')."""
    y = _conv2d_output(x, shape, groups, stride, padding, dilation)
    _call(
        "forward",
        _readable(x),
        values,
        _checked((offsets, starts, t_entries, t_starts), shape, groups, tiling),
        (tiling, groups, shape[2:], stride, padding, dilation),
        y,
        bias,
        residual,
        activation=activation,
        bfloat16=bfloat16,
    )
    return y


@custom_op("isoflop::sparse_conv2d_input_gradient", mutates_args=())
def conv2d_input_gradient(
    dy: Tensor,
    values: Tensor,
    offsets: Tensor,
    starts: Tensor,
    t_entries: Tensor,
    t_starts: Tensor,
    x: Tensor,
    shape: Ints,
    groups: int,
    tiling: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    bfloat16: bool,
) -> Tensor:
    """Return the gradient of the input; of `x` only shape and layout are used."""
    dx = torch.empty_like(x)
    _call(
        "input_gradient",
        _readable(dy),
        values,
        _checked((offsets, starts, t_entries, t_starts), shape, groups, tiling),
        (tiling, groups, shape[2:], stride, padding, dilation),
        dx,
        bfloat16=bfloat16,
    )
    return dx


@custom_op("isoflop::sparse_conv2d_weight_gradient", mutates_args=())
def conv2d_weight_gradient(
    x: Tensor,
    dy: Tensor,
    offsets: Tensor,
    starts: Tensor,
    t_entries: Tensor,
    t_starts: Tensor,
    shape: Ints,
    groups: int,
    tiling: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    bfloat16: bool,
) -> Tensor:
    """Return the gradient of the values, (nnz,)."""
    dvalues = _values_like(x, offsets, tiling)
    _call(
        "weight_gradient",
        _readable(x),
        _readable(dy),
        _checked((offsets, starts, t_entries, t_starts), shape, groups, tiling),
        (tiling, groups, shape[2:], stride, padding, dilation),
        dvalues,
        bfloat16=bfloat16,
    )
    return dvalues


# ---- linear layer


@custom_op("isoflop::sparse_linear", mutates_args=())
def linear(
    x: Tensor,
    values: Tensor,
    offsets: Tensor,
    starts: Tensor,
    t_entries: Tensor,
    t_starts: Tensor,
    shape: Ints,
    tiling: Ints,
    bfloat16: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """Return activation(x @ weight.T + bias + residual), (…, out), row-major."""
    y = _linear_output(x, shape)
    _call(
        "forward",
        _rows(x),
        values,
        _checked((offsets, starts, t_entries, t_starts), shape, 1, tiling),
        (tiling, 1, _ONE, _ONE, _ZERO, _ONE),
        y.view(-1, shape[0]),
        bias,
        None if residual is None else _rows(residual),
        activation=activation,
        bfloat16=bfloat16,
    )
    return y


@custom_op("isoflop::sparse_linear_input_gradient", mutates_args=())
def linear_input_gradient(
    dy: Tensor,
    values: Tensor,
    offsets: Tensor,
    starts: Tensor,
    t_entries: Tensor,
    t_starts: Tensor,
    x: Tensor,
    shape: Ints,
    tiling: Ints,
    bfloat16: bool,
) -> Tensor:
    """Return the gradient of the input; of `x` only shape and layout are used."""
    dx = _linear_gradient(x, shape)
    _call(
        "input_gradient",
        _rows(dy),
        values,
        _checked((offsets, starts, t_entries, t_starts), shape, 1, tiling),
        (tiling, 1, _ONE, _ONE, _ZERO, _ONE),
        dx,
        bfloat16=bfloat16,
    )
    return dx.view(x.shape)


@custom_op("isoflop::sparse_linear_weight_gradient", mutates_args=())
def linear_weight_gradient(
    x: Tensor,
    dy: Tensor,
    offsets: Tensor,
    starts: Tensor,
    t_entries: Tensor,
    t_starts: Tensor,
    shape: Ints,
    tiling: Ints,
    bfloat16: bool,
) -> Tensor:
    """Return the gradient of the values, (nnz,)."""
    dvalues = _values_like(x, offsets, tiling)
    _call(
        "weight_gradient",
        _rows(x),
        _rows(dy),
        _checked((offsets, starts, t_entries, t_starts), shape, 1, tiling),
        (tiling, 1, _ONE, _ONE, _ZERO, _ONE),
        dvalues,
        bfloat16=bfloat16,
    )
    return dvalues


# ---- without values


@conv2d.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    _, _, _, _, _, shape, groups, _, stride, padding, dilation, *_ = args
    return _conv2d_output(x, shape, groups, stride, padding, dilation)


@linear.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    return _linear_output(x, args[5])


@conv2d_input_gradient.register_fake
def _(*args: Any) -> Tensor:
    return torch.empty_like(args[6])


@linear_input_gradient.register_fake
def _(*args: Any) -> Tensor:
    x, shape = args[6:8]
    return _linear_gradient(x, shape).view(x.shape)


@conv2d_weight_gradient.register_fake
def _(*args: Any) -> Tensor:
    return _values_like(args[0], args[2], args[8])


@linear_weight_gradient.register_fake
def _(*args: Any) -> Tensor:
    return _values_like(args[0], args[2], args[7])


# ---- gradients


def _differentiable(
    forward: Any, input_gradient: Any, weight_gradient: Any, numbers: int, sum_over: Callable
) -> None:
    """Register the gradients of three operators as products of the other two.

    Args:
        forward: Takes x, values, index, `numbers` non-tensors; and bias, residual, activation.
        input_gradient: Takes dy, values, index, x, the same non-tensors.
        weight_gradient: Takes x, dy, index, the same non-tensors.
        numbers: How many non-tensors describe the layer.
        sum_over: Returns the gradient of the bias from that of the output.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.layer = inputs[6 : 6 + numbers]
        ctx.activation = inputs[-1]

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        if ctx.activation != "none":
            raise KernelError(
                "A fused activation has no gradient. Apply the activation after the layer, or call "
                "`isoflop.kernels.sparse_conv2d` or `sparse_linear`, which do."
            )
        x, values, *index = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx = input_gradient(dy, values, *index, x, *ctx.layer) if needs[0] else None
        dvalues = weight_gradient(x, dy, *index, *ctx.layer) if needs[1] else None
        dbias = sum_over(dy) if needs[-3] else None
        dresidual = dy if needs[-2] else None
        return dx, dvalues, *[None] * (4 + numbers), dbias, dresidual, None

    def keep_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.layer = inputs[7:]

    def backward_input(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        dy, values, *index = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = plain(grad, values, index, ctx.layer) if needs[0] else None
        dvalues = weight_gradient(grad, dy, *index, *ctx.layer) if needs[1] else None
        return ddy, dvalues, *[None] * (5 + numbers)

    def keep_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.layer = inputs[6:]

    def backward_weight(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, dy, *index = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx = input_gradient(dy, grad, *index, x, *ctx.layer) if needs[0] else None
        ddy = plain(x, grad, index, ctx.layer) if needs[1] else None
        return dx, ddy, *[None] * (4 + numbers)

    def plain(x: Tensor, values: Tensor, index: list[Tensor], layer: tuple[Any, ...]) -> Tensor:
        return forward(x, values, *index, *layer, None, None, "none")

    forward.register_autograd(backward, setup_context=keep)
    input_gradient.register_autograd(backward_input, setup_context=keep_input)
    weight_gradient.register_autograd(backward_weight, setup_context=keep_weight)


_differentiable(
    conv2d,
    conv2d_input_gradient,
    conv2d_weight_gradient,
    numbers=7,
    sum_over=lambda dy: dy.sum((0, 2, 3)),
)
_differentiable(
    linear,
    linear_input_gradient,
    linear_weight_gradient,
    numbers=3,
    sum_over=lambda dy: dy.sum(tuple(range(dy.ndim - 1))) if dy.ndim > 1 else dy,
)


# ---- vmap, which meets the operators where it maps a backward pass alone


def _one_by_one(operator: Any) -> Callable[..., tuple[Tensor, int]]:
    def call(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        # Of the arguments that are tuples of integers, PyTorch gives the place of every integer.
        mapped = [isinstance(dim, int) for dim in in_dims]
        columns = [
            arg.unbind(dim) if is_mapped else [arg] * info.batch_size
            for arg, dim, is_mapped in zip(args, in_dims, mapped, strict=True)
        ]
        return torch.stack([operator(*row) for row in zip(*columns, strict=True)]), 0

    return call


for _operator in (
    *(conv2d, conv2d_input_gradient, conv2d_weight_gradient),
    *(linear, linear_input_gradient, linear_weight_gradient),
):
    _operator.register_vmap(_one_by_one(_operator))


# ---- sizes, layouts and the call


def _conv2d_output(
    x: Tensor, shape: Ints, groups: int, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    out, per_group, *kernel = shape
    if x.ndim != 4 or x.shape[1] != per_group * groups:
        raise KernelError(
            f"A sparse convolution with {per_group * groups} input channels takes (N, "
            f"{per_group * groups}, H, W), not {tuple(x.shape)}."
        )
    height, width = (
        (size + 2 * pad - step * (k - 1) - 1) // by + 1
        for size, k, by, pad, step in zip(
            x.shape[2:], kernel, stride, padding, dilation, strict=True
        )
    )
    if height < 1 or width < 1:
        raise KernelError(
            f"A kernel of {tuple(kernel)} with dilation {tuple(dilation)} does not fit into an input "
            f"of {tuple(x.shape[2:])} with padding {tuple(padding)}."
        )
    n = x.shape[0]
    # No view of a tensor in another order: the output of an operator with gradients must not be a
    # view, or what follows could not change it in place.
    batch = torch.sym_max(n, 1)
    return x.new_empty_strided(
        (n, out, height, width), (1, height * width * batch, width * batch, batch)
    )


def _linear_output(x: Tensor, shape: Ints) -> Tensor:
    if x.ndim < 1 or x.shape[-1] != shape[1]:
        raise KernelError(
            f"A sparse linear layer with {shape[1]} inputs takes (…, {shape[1]}), not "
            f"{tuple(x.shape)}."
        )
    return x.new_empty((*x.shape[:-1], shape[0]))


def _linear_gradient(x: Tensor, shape: Ints) -> Tensor:
    return torch.empty_like(x.reshape(-1, shape[1]))


def _values_like(x: Tensor, offsets: Tensor, tiling: Ints) -> Tensor:
    return x.new_empty(offsets.shape[0] * tiling[0])


def _rows(x: Tensor) -> Tensor:
    """Return (…, features) as a readable (rows, features)."""
    return _readable(x if x.ndim == 2 else x.reshape(-1, x.shape[-1]))


def _readable(x: Tensor) -> Tensor:
    """Return `x`, or a copy if elements share their place or lie across those of the memory."""
    # The kernels read neighbouring images or channels as vectors, and other layouts one by one.
    if x.ndim == 4 and len(x) >= 16 and x.stride(0) != 1 and (x.stride(1) != 1 or x.shape[1] < 16):
        return to_batch_innermost(x.detach())
    if 0 not in x.stride() and x.data_ptr() % 4 == 0:
        return x
    if x.ndim == 4:
        return (
            x.permute(1, 2, 3, 0).clone(memory_format=torch.contiguous_format).permute(3, 0, 1, 2)
        )
    return x.clone(memory_format=torch.contiguous_format)


def _checked(
    tensors: tuple[Tensor, ...], shape: Ints, groups: int, tiling: Ints
) -> tuple[Tensor, ...]:
    """Return the tensors of an index, which no kernel sees before it is known to be whole."""
    out, per_group, kh, kw = shape
    rows, block_in, block_out = tiling
    geometry = ((out, per_group, kh, kw), groups, rows, block_in, block_out)
    SparseIndex(*geometry, *tensors).check_once()
    return tensors


def _call(
    name: str,
    first: Tensor,
    second: Tensor,
    index: tuple[Tensor, ...],
    layer: tuple[Any, ...],
    output: Tensor,
    *epilogue: Tensor | None,
    **options: Any,
) -> None:
    """Call a kernel, which fills `output`."""
    if second.ndim == 1:
        second = second.contiguous()
    try:
        getattr(library.native(), name)(
            torch.to_dlpack(first),
            torch.to_dlpack(second),
            tuple(map(torch.to_dlpack, index)),
            *layer,
            torch.to_dlpack(output),
            *(None if tensor is None else torch.to_dlpack(tensor) for tensor in epilogue),
            threads=torch.get_num_threads(),
            **options,
        )
    except ValueError as error:
        raise KernelError(f"The sparse kernels cannot work on this: {error}.") from error
