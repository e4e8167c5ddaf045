"""FLOPs of the operators, for `isoflop.profile` and PyTorch's own counter.

All three products of a layer cost one multiply-accumulate per non-zero and output pixel.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from isoflop.kernels.cpu import ops  # noqa: F401  (defines the operators)

_operators = torch.ops.isoflop


@register_flop_formula([_operators.sparse_conv2d, _operators.sparse_linear])
def _forward(x: Any, values: Any, *args: Any, out_shape: Any, **_: Any) -> int:
    return _flops(values[0], out_shape, args[4])


@register_flop_formula(
    [_operators.sparse_conv2d_input_gradient, _operators.sparse_linear_input_gradient]
)
def _input_gradient(dy: Any, values: Any, *args: Any, **_: Any) -> int:
    return _flops(values[0], dy, args[5])


@register_flop_formula(
    [_operators.sparse_conv2d_weight_gradient, _operators.sparse_linear_weight_gradient]
)
def _weight_gradient(x: Any, dy: Any, *args: Any, out_shape: Any, **_: Any) -> int:
    return _flops(out_shape[0], dy, args[4])


def _flops(nnz: int, output: Any, shape: Any) -> int:
    return 2 * nnz * (math.prod(output) // shape[0])
