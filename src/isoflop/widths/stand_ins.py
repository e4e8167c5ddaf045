"""Shapes of functions that PyTorch computes for plain sizes only, or slowly for symbolic ones.

During a trace these take the place of the functions: they make the comparisons that the function
makes, which are the equations, and return an empty tensor of the right shape.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from isoflop.flops.fakes import grouped_product

StandIn = Callable[..., Any]

STAND_INS: dict[Callable[..., Any], StandIn] = {}
"""Stand-ins by the function that they replace."""


BY_NAME: dict[str, StandIn] = {}
"""Stand-ins of operators of other libraries, which need not be installed, by full name."""


def stand_in_of(function: Any) -> Any:
    """Return the stand-in of a function, or the function itself."""
    packet = getattr(function, "_overloadpacket", function)
    name = getattr(packet, "_qualified_op_name", "")
    stand_in = STAND_INS.get(function) or BY_NAME.get(name)
    return function if stand_in is None else functools.partial(_call, stand_in)


def _call(stand_in: StandIn, *args: Any, **kwargs: Any) -> Any:
    """Run a stand-in, the first argument of which most functions call their input."""
    return stand_in(*args, **kwargs) if args else stand_in(kwargs.pop("input"), **kwargs)


def stands_for(*functions: Callable[..., Any]) -> Callable[[StandIn], StandIn]:
    """Decorator that registers a stand-in."""

    def register(stand_in: StandIn) -> StandIn:
        for function in functions:
            STAND_INS[function] = stand_in
        return stand_in

    return register


def _require(equal: Any, what: str) -> None:
    # Taking the truth of a comparison of symbols is what records the equation.
    if not equal:
        raise RuntimeError(what)  # as PyTorch does, since models catch it


@stands_for(F.linear)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    _require(x.shape[-1] == weight.shape[1], f"linear of {weight.shape} got {x.shape}")
    if bias is not None:
        _require(bias.shape[0] == weight.shape[0], "bias and weight differ")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@stands_for(F.bilinear)
def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    for one, two in ((x.shape[-1], weight.shape[1]), (y.shape[-1], weight.shape[2])):
        _require(one == two, f"bilinear of {weight.shape} got {x.shape} and {y.shape}")
    if bias is not None:
        _require(bias.shape[0] == weight.shape[0], "bias and weight differ")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@stands_for(torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
def _cell(
    x: Tensor,
    state: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    gates = weight_hh.shape[0]
    count = int(gates) // int(state.shape[-1])
    _require(x.shape[-1] == weight_ih.shape[1], f"cell of {weight_ih.shape} got {x.shape}")
    _require(state.shape[-1] == weight_hh.shape[1], f"cell of {weight_hh.shape} got {state.shape}")
    _require(gates == count * weight_hh.shape[1], "the weights of the gates do not fit")
    for other in (weight_ih, bias_ih, bias_hh):
        _require(other is None or other.shape[0] == gates, "the gates do not fit")
    return torch.empty_like(state)


@stands_for(torch.lstm_cell)
def _lstm_cell(x: Tensor, state: Sequence[Tensor], *weights: Any) -> tuple[Tensor, Tensor]:
    hidden, cell = state
    _require(hidden.shape[-1] == cell.shape[-1], "the two states differ")
    return _cell(x, hidden, *weights), torch.empty_like(cell)


@stands_for(F.layer_norm, F.rms_norm)
def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    shape = x.shape[-len(normalized_shape) :]
    for other in (normalized_shape, *(t.shape for t in (weight, bias) if t is not None)):
        for one, two in zip(shape, other, strict=True):
            _require(one == two, f"layer norm of {tuple(other)} got {tuple(x.shape)}")
    return torch.empty_like(x)


@stands_for(F.batch_norm)
def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is not None:
            _require(x.shape[1] == tensor.shape[0], f"batch norm of {tensor.shape} got {x.shape}")
    return torch.empty_like(x)


@stands_for(torch.baddbmm)
def _baddbmm(x: Tensor, batch1: Tensor, batch2: Tensor, **kwargs: Any) -> Tensor:
    return torch.add(x, torch.bmm(batch1, batch2))


@stands_for(torch.addcmul)
def _addcmul(x: Tensor, tensor1: Tensor, tensor2: Tensor, **kwargs: Any) -> Tensor:
    return x + tensor1 * tensor2


@stands_for(torch.linalg.solve_triangular)
def _solve_triangular(matrix: Tensor, x: Tensor, **kwargs: Any) -> Tensor:
    side = -2 if kwargs.get("left", True) else -1
    _require(matrix.shape[-1] == x.shape[side], "solve_triangular: the sizes do not fit")
    batch = torch.broadcast_shapes(matrix.shape[:-2], x.shape[:-2])
    return x.new_empty((*batch, *x.shape[-2:]))


@stands_for(Tensor.__getitem__)
def _getitem(x: Tensor, index: Any) -> Any:
    # A slice up to a width takes the whole dimension, or the end is cut off; which of them tells
    # the size, and in the first case PyTorch does not ask whether the two are equal.
    items = list(index) if isinstance(index, tuple) else [index]
    if items[0] is Ellipsis and all(isinstance(item, (slice, int)) for item in items[1:]):
        items[:1] = [slice(None)] * (x.ndim - len(items) + 1)
    for dim, item in enumerate(items):
        if isinstance(item, slice):
            if isinstance(item.stop, torch.SymInt):
                bool(item.stop == x.shape[dim])
        elif not isinstance(item, (int, torch.SymInt)) or isinstance(item, bool):
            break
    return x[index]


@stands_for(Tensor.reshape, Tensor.view)
def _reshape(x: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
    if shape and isinstance(shape[0], torch.dtype):
        return x.view(shape[0])
    sizes = list(shape[0] if shape and isinstance(shape[0], (tuple, list)) else shape)
    if not any(isinstance(size, torch.SymInt) and size == 1 for size in (*x.shape, *sizes)):
        return x.reshape(*shape, **kwargs)
    # PyTorch leaves dimensions of size one out, those too that are one for these widths only.
    rest = math.prod(size for size in sizes if not isinstance(size, int) or size != -1)
    sizes = [x.numel() // rest if isinstance(s, int) and s == -1 else s for s in sizes]
    _require(x.numel() == math.prod(sizes), f"reshape of {x.shape} to {sizes}")
    return x.new_empty(sizes)


@stands_for(Tensor.__setitem__)
def _setitem(x: Tensor, index: Any, value: Any) -> None:
    # Rows chosen by a mask take a value of the size of a row.
    if isinstance(index, Tensor) and index.dtype == torch.bool and isinstance(value, Tensor):
        for one, two in zip(reversed(x.shape[index.ndim :]), reversed(value.shape), strict=False):
            _require(one == two or two == 1, f"{value.shape} put into {x.shape}")
    else:
        x[index] = value


@stands_for(Tensor.data_ptr)
def _data_ptr(x: Tensor) -> int:
    return 0  # as for every tensor without values; of a symbolic size PyTorch may not be asked


@stands_for(torch.polar)
def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    both = radius + angle  # which compares the shapes
    return both.new_empty(both.shape, dtype=both.dtype.to_complex())


@stands_for(F.pad)
def _pad(x: Tensor, pad: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
    shape = list(x.shape)
    for index in range(len(pad) // 2):
        shape[-1 - index] = shape[-1 - index] + pad[2 * index] + pad[2 * index + 1]
    return x.new_empty(shape)


def _padded_by_itself(convolve: Callable[..., Tensor]) -> StandIn:
    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
    ) -> Tensor:
        if padding == "same":  # of an even kernel PyTorch asks for plain sizes
            kernel = weight.shape[2:]
            steps = [dilation] * len(kernel) if isinstance(dilation, int) else dilation
            for dim, (size, step) in enumerate(zip(kernel, steps, strict=True)):
                x = _pad(x, [0, 0] * (len(kernel) - 1 - dim) + [0, step * (size - 1)])
            padding = 0
        return convolve(x, weight, bias, stride, padding, dilation, groups)

    return run


for _convolve in (F.conv1d, F.conv2d, F.conv3d):
    stands_for(_convolve)(_padded_by_itself(_convolve))


@stands_for(torch.tensor_split, Tensor.tensor_split)
def _tensor_split(x: Tensor, indices_or_sections: Any, dim: int = 0) -> Sequence[Tensor]:
    # Parts that are of one size here stay so, as what follows may need.
    parts = indices_or_sections
    if isinstance(parts, int) and x.shape[dim] % parts == 0:
        return torch.split(x, x.shape[dim] // parts, dim)
    return torch.tensor_split(x, parts, dim)


@stands_for(torch.chunk, Tensor.chunk)
def _chunk(x: Tensor, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    if x.shape[dim] % chunks == 0:
        return torch.split(x, x.shape[dim] // chunks, dim)
    return torch.chunk(x, chunks, dim)


@stands_for(torch.hsplit, Tensor.hsplit)
def _hsplit(x: Tensor, indices_or_sections: Any) -> Sequence[Tensor]:
    return _tensor_split(x, indices_or_sections, 0 if x.ndim == 1 else 1)


@stands_for(torch.roll, Tensor.roll, F.local_response_norm)
def _same_shape(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty_like(x)


@stands_for(F.interpolate)
def _interpolate(
    x: Tensor, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    dims = x.ndim - 2
    if size is not None:
        sizes = [size] * dims if isinstance(size, (int, torch.SymInt)) else list(size)
    else:
        factors = [scale_factor] * dims if isinstance(scale_factor, (int, float)) else scale_factor
        sizes = [
            n * f if isinstance(f, int) else int(int(n) * f)
            for n, f in zip(x.shape[2:], factors, strict=True)
        ]
    return x.new_empty((*x.shape[:2], *sizes))


@stands_for(F.unfold)
def _unfold(
    x: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    kernel, dilation, padding, stride = (
        (v, v) if isinstance(v, int) else v for v in (kernel_size, dilation, padding, stride)
    )
    blocks = 1
    for i in range(2):
        reach = dilation[i] * (kernel[i] - 1) + 1
        blocks = blocks * ((x.shape[-2 + i] + 2 * padding[i] - reach) // stride[i] + 1)
    return x.new_empty((*x.shape[:-3], x.shape[-3] * kernel[0] * kernel[1], blocks))


@stands_for(torch._grouped_mm)  # type: ignore[attr-defined]
def _grouped_mm(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # `torch.nn.functional.grouped_mm` calls this function. It takes rows of whole 16 bytes only.
    for size in weight.shape[1:]:
        if size % 8 != 0:
            bool(size % 4 == 0)
    return grouped_product(x, weight, *args, **kwargs)


@stands_for(F.fold)
def _fold(x: Tensor, output_size: Any, kernel_size: Any, *args: Any, **kwargs: Any) -> Tensor:
    height, width = (
        v if isinstance(v, (tuple, list)) else (v, v) for v in (output_size, kernel_size)
    )
    _require(x.shape[-2] % math.prod(width) == 0, f"fold of {x.shape}")
    return x.new_empty((*x.shape[:-2], x.shape[-2] // math.prod(width), *height))


@stands_for(torch.autograd.grad)
def _grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    *args: Any,
    is_grads_batched: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, ...]:
    # Shapes are all that is asked for, and they are known.
    batch: tuple[Any, ...] = ()
    if is_grads_batched:
        first = grad_outputs if isinstance(grad_outputs, Tensor) else grad_outputs[0]
        batch = (first.shape[0],)
    each = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    return tuple(x.new_empty((*batch, *x.shape)) for x in each)


@stands_for(torch._C._nn.pad_sequence)  # pyright: ignore[reportAttributeAccessIssue]
def _pad_sequence(
    sequences: Sequence[Tensor], batch_first: bool = False, value: float = 0.0, side: str = "right"
) -> Tensor:
    longest = max(int(x.shape[0]) for x in sequences)
    whole = [torch.cat([x, x.new_empty((longest - x.shape[0], *x.shape[1:]))]) for x in sequences]
    return torch.stack(whole, 0 if batch_first else 1)


def recurrent(
    module: nn.RNNBase, input: Tensor | PackedSequence, hx: Any = None
) -> tuple[Any, Any]:
    """Stand in for the forward pass of an LSTM, GRU or RNN, which would run step by step."""
    if isinstance(input, PackedSequence):
        batch = [int(input.batch_sizes[0])]
        output, states = _recurrent(module, input.data, hx, batch)
        return input._replace(data=output), states
    batch = [input.shape[0 if module.batch_first else 1]] if input.ndim == 3 else []
    return _recurrent(module, input, hx, batch)


def _recurrent(module: nn.RNNBase, x: Tensor, state: Any, batch: list[Any]) -> tuple[Tensor, Any]:
    directions = 2 if module.bidirectional else 1
    hidden: Any = module._parameters["weight_hh_l0"].shape[1]  # type: ignore[union-attr]
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    output: Any = hidden
    inner: Any = hidden
    if module.proj_size:
        inner = module._parameters["weight_hr_l0"].shape[1]  # type: ignore[union-attr]
    size: Any = x.shape[-1]
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[:directions]:
            expected: dict[str, tuple[Any, ...]] = {
                "weight_ih": (gates * inner, size),
                "weight_hh": (gates * inner, output),
                "bias_ih": (gates * inner,),
                "bias_hh": (gates * inner,),
                "weight_hr": (output, inner),
            }
            for name, shape in expected.items():
                parameter = module._parameters.get(f"{name}_l{layer}{suffix}")
                if parameter is not None:
                    for one, two in zip(parameter.shape, shape, strict=True):
                        _require(one == two, f"{name} of {type(module).__name__} does not fit")
        size = directions * output
    layers = module.num_layers * directions
    result = x.new_empty((*x.shape[:-1], size))
    last = x.new_empty((layers, *batch, output))
    if state is not None:
        for given in state if isinstance(state, tuple) else (state,):
            _require(given.shape[0] == layers, "the initial state does not fit")
        first = state[0] if isinstance(state, tuple) else state
        _require(first.shape[-1] == output, "the initial state does not fit")
    if module.mode == "LSTM":
        return result, (last, x.new_empty((layers, *batch, inner)))
    return result, last


def _over_classes(loss: Callable[..., Tensor]) -> StandIn:
    def run(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Targets are numbers of classes, so that scores must stay as many: a model that returns nothing
        # but its loss shows this nowhere else.
        classes = x.shape[1] if x.ndim > 1 else x.shape[0]
        _require(classes == int(classes), "as many scores as classes")
        return loss(x, target, *args, **kwargs)

    return run


for _loss in (F.cross_entropy, F.nll_loss, F.multi_margin_loss):
    stands_for(_loss)(_over_classes(_loss))


def _deformable(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *args: Any
) -> Tensor:
    groups, offset_groups, masked = args[6:9]
    taps = weight.shape[2] * weight.shape[3] * offset_groups
    _require(
        x.shape[1] == weight.shape[1] * groups, f"deform_conv2d of {weight.shape} got {x.shape}"
    )
    _require(offset.shape[1] == 2 * taps, "two offsets for each tap")
    if masked:
        _require(mask.shape[1] == taps, "one factor for each tap")
    _require(bias.shape[0] == weight.shape[0], "bias and weight differ")
    return x.new_empty((x.shape[0], weight.shape[0], *offset.shape[2:]))


BY_NAME["torchvision::deform_conv2d"] = _deformable
