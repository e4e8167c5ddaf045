"""Which dimensions of a model move together, and how to widen all of them.

Every parameter dimension that could be a width becomes a symbol, and the model runs once on fake
tensors of symbolic shapes. The shape checks of PyTorch's own operations are then the exact
equations that couple the dimensions: a residual addition makes two widths equal, a concatenation
makes one the sum of others, the input and the output pin theirs to constants. What stays free is
multiplied by the factor; everything else follows. No rule per model is needed.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from isoflop.errors import WideningError
from isoflop.flops import Trace
from isoflop.surgery import (
    ExampleInputs,
    copy_with_tensors,
    fake_inputs,
    fake_like,
    normalize_inputs,
    plain_output,
    run_on_fakes,
    unfused,
)

# Integer attributes of user modules that may hold a width. An attribute changes only if the
# equations tie it to a width of a parameter, so a name that matches by chance does no harm.
_WIDTH_NAME = re.compile(
    r"(dim|dims|features|channels|chs|planes|hidden|hidden_size|embed|width|d_model|num_features)$"
    r"|^(dim|hidden|embed|inner|in|out)_|channels",
)


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Widths:
    """New sizes for a model.

    Attributes:
        factor: By how much each free width was multiplied, before rounding.
        shapes: New shape of every parameter and buffer by `(module path, attribute)`.
        attributes: New value of every integer attribute that changes, likewise.
    """

    factor: float
    shapes: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)


def solve_widths(
    model: nn.Module, factor: float, example_inputs: ExampleInputs, *, multiple_of: int = 1
) -> Widths:
    """Find the sizes of `model` with every hidden width multiplied by `factor`.

    Sizes of the model's inputs and outputs, of kernels, and the numbers of heads and groups stay;
    a depthwise convolution stays depthwise.

    Args:
        model: Any module; it is neither run nor changed, and may be on the meta device.
        factor: Factor of at least 1.
        example_inputs: See `isoflop.profile`.
        multiple_of: Round each free width to a multiple of this.

    Raises:
        InputError: The model cannot be run on the example inputs.
        WideningError: The widths cannot be told apart from sizes that must stay.
    """
    symbolic = _SymbolicTrace(model)
    symbolic.run(example_inputs)
    return symbolic.solve(factor, multiple_of)


def widen(model: nn.Module, widths: Widths) -> nn.Module:
    """Return a copy of `model` with the sizes of `widths`; resized tensors are uninitialised.

    Tensors whose shape stays are copied.
    """

    def make(_module: nn.Module, path: str, name: str, tensor: Tensor) -> Tensor:
        shape = widths.shapes.get((path, name), tuple(tensor.shape))
        if shape == tuple(tensor.shape):
            return tensor.detach().clone()
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

    wide = copy_with_tensors(model, make)
    modules = dict(wide.named_modules())
    for (path, name), value in widths.attributes.items():
        modules[path].__dict__[name] = value
    return wide


def check_widened(dense: nn.Module, wide: nn.Module, factor: float, trace: Trace) -> None:
    """Refuse a result in which a hidden layer kept a width that should have grown.

    A forward pass that works is no proof: an equation with a constant can pin a width silently.

    Raises:
        WideningError: The weight that kept its size is named.
    """
    old, new = dict(dense.named_parameters()), dict(wide.named_parameters())
    for name in trace.table.by_parameter():
        path, _, _ = name.rpartition(".")
        module = dense.get_submodule(path)
        before, after = tuple(old[name].shape), tuple(new[name].shape)
        if len(before) < 2:
            continue
        outputs, inputs = (1, 0) if getattr(module, "transposed", False) else (0, 1)
        ends = {outputs: name in trace.last, inputs: name in trace.first}
        for dim, is_end in ends.items():
            grows = _scale(before[dim], factor, 1) > before[dim] > 1
            if grows and not is_end and after[dim] == before[dim]:
                side = "output" if dim == outputs else "input"
                raise WideningError(
                    f"The {side} width of {name!r} ({type(module).__name__}, shape {before}) did not "
                    f"grow with the others by {factor:.3f}: the model ties it to a size that must "
                    "stay. Use a transform that keeps widths, such as SparseParallel."
                )


class _SymbolicTrace:
    """One forward pass in which every possible width is a symbol."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.env = ShapeEnv(duck_shape=False, specialize_zero_one=False)
        self.mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        # Symbolic shapes hardly ever repeat, so looking them up costs more than it saves.
        self.mode.cache_enabled = False
        self.shapes: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.attributes: dict[tuple[str, str], Any] = {}
        self.symbols: dict[Any, int] = {}
        self.parameter_symbols: set[Any] = set()

    def symbol(self, size: int, name: str) -> Any:
        """Return a fresh symbolic integer whose value during the trace is `size`."""
        source = ConstantSource(f"{name}_{len(self.symbols)}")
        symbol = self.env.create_symbol(size, source, dynamic_dim=DimDynamic.DYNAMIC)
        if isinstance(symbol, sympy.Symbol):
            self.symbols[symbol] = size
        return self.env.create_symintnode(symbol, hint=size, source=source)

    def run(self, example_inputs: ExampleInputs) -> None:
        """Run the forward pass and pin what the model returns to its sizes."""
        args, kwargs = normalize_inputs(self.model, example_inputs)
        with torch.no_grad(), unfused(), self.mode:
            fake = copy_with_tensors(self.model, self._make)
            fake.eval()
            modules = dict(fake.named_modules())
            for path, module in modules.items():
                self._set_attributes(path, module)
                if type(module) in _BATCH_NORMS:
                    module.forward = functools.partial(_batch_norm_shape, module)
            args, kwargs = fake_inputs((args, kwargs))
            output = run_on_fakes(fake, args, kwargs)
            for tensor in tree_leaves(plain_output(output)):
                if isinstance(tensor, Tensor):
                    for size in tensor.shape:
                        int(size)  # makes the environment replace the symbol by its value

    def _make(self, module: nn.Module, path: str, name: str, tensor: Tensor) -> Tensor:
        shape = self._symbolic_shape(module, name, tensor)
        if shape is None:
            return fake_like(tensor)
        self.shapes[path, name] = shape
        if isinstance(module._parameters.get(name), nn.Parameter):
            for size in shape:
                if isinstance(size, torch.SymInt):
                    self.parameter_symbols |= size.node.expr.free_symbols
        return torch.empty(shape, dtype=tensor.dtype, device="cpu")

    def _symbolic_shape(
        self, module: nn.Module, name: str, tensor: Tensor
    ) -> tuple[Any, ...] | None:
        if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
            return None  # tables of indices and counters
        sizes: list[Any] = list(tensor.shape)
        if isinstance(module, _ConvNd) and name == "weight":
            sizes[:2] = self._conv_channels(module)
            return tuple(sizes)
        fixed = {0} if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else set()
        return tuple(
            self.symbol(size, name) if size > 1 and dim not in fixed else size
            for dim, size in enumerate(sizes)
        )

    def _conv_channels(self, conv: _ConvNd) -> tuple[Any, Any]:
        """Return symbolic sizes of the first two dimensions of a convolution's weight."""
        sizes = tuple(conv.weight.shape[:2])
        if conv.groups > 1 and conv.groups == conv.in_channels and not conv.transposed:
            # Depthwise: the number of groups is the width.
            groups = self.symbol(conv.groups, "groups")
            return groups * (conv.out_channels // conv.groups), sizes[1]
        first, second = (self.symbol(s, "channels") if s > 1 else s for s in sizes)
        return first, second

    def _set_attributes(self, path: str, module: nn.Module) -> None:
        """Make the attributes that restate a width symbolic too, so that they follow it."""
        new: dict[str, Any] = {}
        weight = module._parameters.get("weight")
        if isinstance(module, nn.Linear) and weight is not None:
            new = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        elif isinstance(module, _ConvNd) and weight is not None:
            groups: Any = module.groups
            if groups > 1 and groups == module.in_channels and not module.transposed:
                multiplier = module.out_channels // module.groups
                groups = weight.shape[0] // multiplier if multiplier > 1 else weight.shape[0]
                new["groups"] = groups
            ends = (weight.shape[1] * groups, weight.shape[0])
            if module.transposed:
                ends = (weight.shape[0], weight.shape[1] * groups)
            new |= {"in_channels": ends[0], "out_channels": ends[1]}
        elif isinstance(module, _NormBase):
            statistic = weight if weight is not None else module._buffers.get("running_mean")
            if statistic is not None:
                new = {"num_features": statistic.shape[0]}
        elif isinstance(module, nn.GroupNorm) and weight is not None:
            new = {"num_channels": weight.shape[0]}
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            shape = (
                tuple(weight.shape)
                if weight is not None
                else tuple(self.symbol(s, "norm") if s > 1 else s for s in module.normalized_shape)
            )
            new = {"normalized_shape": shape}
        elif isinstance(module, nn.Embedding) and weight is not None:
            new = {"embedding_dim": weight.shape[1]}
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            width: Any = module.in_proj_weight.shape[1]
            new = dict.fromkeys(("embed_dim", "kdim", "vdim"), width)
            new["head_dim"] = width // module.num_heads
        elif not type(module).__module__.startswith("torch.nn."):
            new = {
                name: self.symbol(value, name)
                for name, value in module.__dict__.items()
                if type(value) is int and value > 1 and _WIDTH_NAME.search(name)
            }
        for name, value in new.items():
            self.attributes[path, name] = value
            module.__dict__[name] = value

    def solve(self, factor: float, multiple_of: int) -> Widths:
        """Scale the free widths and work out everything that follows from them."""
        meaning = {symbol: self.env.simplify(symbol) for symbol in self.symbols}
        meaning = self._solve_leftover_equations(meaning)
        free = {s for expression in meaning.values() for s in expression.free_symbols}
        widths = {
            s for p in self.parameter_symbols for s in meaning[p].free_symbols if s in self.symbols
        }
        units = dict.fromkeys(widths, multiple_of)
        while True:
            values = {
                s: sympy.Integer(
                    _scale(self.symbols[s], factor, units[s]) if s in widths else self.symbols[s]
                )
                for s in free
            }
            assignment = {s: meaning[s].xreplace(values) for s in self.symbols}
            broken = [g for g in self._guards() if g.xreplace(assignment) == sympy.false]
            if not self._coarsen(units, broken, meaning):
                break
        if broken or not all(value.is_Integer for value in assignment.values()):
            raise WideningError(
                f"No sizes of {type(self.model).__name__} near {factor:.3f} times its widths "
                f"satisfy its shape equations, such as {_readable(broken, self.symbols)}; try another "
                "sparsity."
            )
        return Widths(
            factor=factor,
            shapes={key: _evaluate(shape, assignment) for key, shape in self.shapes.items()},
            attributes={key: _evaluate(v, assignment) for key, v in self.attributes.items()},
        )

    def _guards(self) -> Iterator[Any]:
        for guard in self.env.guards:
            # Comparisons record which branch the trace took; only equations must hold at any size.
            if isinstance(guard.expr, sympy.Eq):
                yield guard.expr

    def _solve_leftover_equations(self, meaning: dict[Any, Any]) -> dict[Any, Any]:
        """Use the linear equations that the shape environment recorded but did not solve."""
        for guard in self._guards():
            left, right = guard.lhs.xreplace(meaning), guard.rhs.xreplace(meaning)
            solved = _definition(left, right) or _solution(left - right)
            if solved is not None:
                meaning = {s: expression.xreplace(solved) for s, expression in meaning.items()}
        return meaning

    def _coarsen(
        self,
        units: dict[Any, int],
        broken: list[Any],
        meaning: dict[Any, Any],
    ) -> bool:
        """Round the widths in broken divisibility equations to larger multiples."""
        changed = False
        for guard in broken:
            divisors = [
                int(d)
                for mod in guard.atoms(sympy.Function)
                for d in mod.args[1:]
                if getattr(d, "is_Integer", False)
            ]
            for divisor in divisors:
                for symbol in {
                    free for s in guard.free_symbols for free in meaning[s].free_symbols
                }:
                    if symbol in units and units[symbol] % divisor:
                        units[symbol] = math.lcm(units[symbol], divisor)
                        changed = True
        return changed


def _batch_norm_shape(norm: Any, x: Tensor) -> Tensor:
    """Stand in for a BatchNorm, whose many element-wise steps take half of a symbolic trace."""
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        # The comparison is the equation.
        if tensor is not None and x.shape[1] != tensor.shape[0]:
            raise ValueError(f"BatchNorm of {tensor.shape[0]} channels got {x.shape[1]}")
    return x


def _scale(size: int, factor: float, unit: int) -> int:
    return max(unit, math.floor(size * factor / unit + 0.5) * unit)


def _definition(left: Any, right: Any) -> dict[Any, Any] | None:
    """Read an equation with a lone symbol on one side, whatever functions the other holds."""
    for symbol, expression in ((left, right), (right, left)):
        if symbol.is_Symbol and symbol not in expression.free_symbols:
            return {symbol: expression}
    return None


def _solution(equation: Any) -> dict[Any, Any] | None:
    """Solve a polynomial equation for a symbol that is an integer combination of the others."""
    if equation.has(sympy.Function):
        return None
    for symbol in sorted(equation.free_symbols, key=str):
        if sympy.degree(equation, symbol) == 1:
            solutions = sympy.solve(equation, symbol)
            if len(solutions) == 1 and _is_integral(solutions[0]):
                return {symbol: sympy.expand(solutions[0])}
    return None


def _is_integral(expression: Any) -> bool:
    return (
        all(c.is_Integer for c in sympy.Poly(expression, *expression.free_symbols).coeffs())
        if (expression.free_symbols)
        else expression.is_Integer
    )


def _evaluate(value: Any, assignment: dict[Any, Any]) -> Any:
    """Put numbers for the symbols into an integer, a symbolic integer, or a tuple of them."""
    if isinstance(value, tuple):
        return tuple(_evaluate(v, assignment) for v in value)
    if isinstance(value, torch.SymInt):
        expression: Any = value.node.expr
        return int(expression.xreplace(assignment))
    return int(value)


def _readable(guards: list[Any], symbols: dict[Any, int]) -> str:
    if not guards:
        return "a width that does not divide evenly"
    sizes = {s: symbols[s] for s in guards[0].free_symbols if s in symbols}
    return f"{guards[0]} with {sizes}"
