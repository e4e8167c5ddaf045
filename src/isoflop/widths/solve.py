"""New sizes from the equations of a trace, and a model of those sizes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import WideningError
from isoflop.flops.copies import copy_with_tensors, owned_tensors
from isoflop.flops.rules import rule_of
from isoflop.surgery import ExampleInputs, configs
from isoflop.widths.equations import Equation
from isoflop.widths.expressions import Atom, Expression
from isoflop.widths.nodes import expression_of
from isoflop.widths.scales import Scale, Source
from isoflop.widths.trace import SymbolicTrace

ADVICE = (
    "A size that is wrongly taken for a constant, or for a width, can be told with "
    "`isoflop.register_widening_rule`; transforms that keep widths, such as SparseParallel, need none."
)

Key = tuple[str, str]
"""Module path and name of an attribute."""


@dataclass(frozen=True)
class Widths:
    """New sizes for a model.

    Attributes:
        factor: By how much each free width was multiplied, before rounding.
        shapes: New shape of every parameter and buffer by `(module path, attribute)`.
        attributes: New value of every attribute that changes, likewise: integers and powers of them.
        numbers: New value of every tensor with one element that is a power of a width, likewise.
        unnamed: Floats that are a power of a width though they come from no attribute, by their
            number in `SymbolicTrace.unnamed`: where they are used, their value and the new one.
        pinned: Why a size of a parameter must stay, by `(module path, attribute, dimension)`: the
            equation that says so, where it was found, and what may be the reason.
    """

    factor: float
    shapes: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    attributes: dict[Key, Any] = field(default_factory=dict)
    numbers: dict[Key, float] = field(default_factory=dict)
    unnamed: dict[int, tuple[str, float, float]] = field(default_factory=dict)
    pinned: dict[tuple[str, str, int], str] = field(default_factory=dict)


def solve_widths(
    model: nn.Module,
    factor: float,
    example_inputs: ExampleInputs,
    *,
    multiple_of: int = 1,
    content: Callable[[Tensor, tuple[int, ...]], Tensor | None] = lambda table, shape: table,
) -> Widths:
    """Find the sizes of `model` with every hidden width multiplied by `factor`.

    Sizes of the model's inputs and outputs, of kernels, and the numbers of heads and groups stay;
    a depthwise convolution stays depthwise. Where a width must be a multiple of a number of heads
    or groups, the width per head or group is what is multiplied and rounded.

    Args:
        model: Any module; it is neither run nor changed, and may be on the meta device.
        factor: Factor of at least 1.
        example_inputs: See `isoflop.profile`.
        multiple_of: Round each free width to a multiple of this.
        content: Returns the content of a tensor that nothing trains at another size, or None if that is
            not known; where it is known for even widths only, the widths there become even.

    Raises:
        InputError: The model cannot be run on the example inputs.
        WideningError: The widths cannot be told apart from sizes that must stay.
    """
    trace = SymbolicTrace(model)
    trace.run(example_inputs)
    equations = trace.space.equations
    weights = [expression_of(s) for key in trace.parameters for s in trace.shapes[key]]

    def known() -> set[Atom]:
        return {atom for size in weights for atom in equations.resolve(size).symbols()}

    equations.solve(known)
    if _tie(trace, known()):
        equations.solve(known)
    units = _units([equations.resolve(size) for size in weights], multiple_of)
    values: dict[Atom, int] = {}

    def evaluate(size: Expression) -> int:
        return equations.resolve(size).evaluate(values)

    def scale() -> None:
        values.update({atom: scaled(atom.value, factor, unit) for atom, unit in units.items()})

    scale()

    def new(size: Any) -> Any:
        if isinstance(size, (tuple, list)):
            return type(size)(new(item) for item in size)
        return evaluate(expression_of(size)) if isinstance(size, torch.SymInt) else size

    for key, table in _tables(model):
        shape = trace.shapes.get(key, ())
        atoms = {a for s in shape for a in equations.resolve(expression_of(s)).symbols()}
        before = {atom: units[atom] for atom in atoms & units.keys()}
        # Sines and cosines come in pairs, and those of two coordinates in pairs of pairs.
        for pairs in (1, 2, 4):
            units |= {atom: math.lcm(unit, pairs) for atom, unit in before.items()}
            scale()
            after = new(tuple(shape))
            if after == tuple(table.shape) or content(table, after) is not None:
                break
        else:
            units |= before
            scale()

    def number(source: Source, path: str, name: str) -> float:
        def grown() -> list[Expression]:
            return [size for size in trace.sizes(path) if evaluate(size) != size.value]

        told = name in rule_of(holders[path]).widths
        return trace.use_of(source, path, name).resized(evaluate, grown, told)

    def attribute(value: Any, path: str, name: str) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(attribute(item, path, name) for item in value)
        if isinstance(value, dict):
            return {key: attribute(item, path, name) for key, item in value.items()}
        if isinstance(value, Scale):
            return number(value.sources[0], path, name)
        return new(value)

    for equation in equations.recorded.values():
        left, right = equations.resolve(equation.left), equations.resolve(equation.right)
        if left.evaluate(values) != right.evaluate(values):
            raise WideningError(
                f"No sizes of {type(model).__name__} near {factor:.3f} times its widths satisfy "
                f"{equation}. Try another sparsity or `multiple_of`. {ADVICE}"
            )
    shapes = {key: new(tuple(shape)) for key, shape in trace.shapes.items()}
    for (path, name), shape in shapes.items():
        if any(
            size < 1 and old != 0 for size, old in zip(shape, trace.shapes[path, name], strict=True)
        ):
            raise WideningError(
                f"{path}.{name} would get the shape {shape} at {factor:.3f} times the widths of "
                f"{type(model).__name__}: a sum of widths there must stay. {ADVICE}"
            )
    pinned = {
        (*key, dim): f"{equation} ties it to a size that must stay"
        f"{_made_plain(equation, trace.space.plain)}"
        for key in trace.parameters
        for dim, size in enumerate(trace.shapes[key])
        if size > 1 and equations.resolve(expression_of(size)).is_constant
        if (equation := equations.cause(expression_of(size))) is not None
    }
    holders = {**dict(model.named_modules()), **configs(model)}
    attributes = {
        (path, name): changed
        for (path, name), value in trace.attributes.items()
        if (changed := attribute(value, path, name)) != getattr(holders[path], name)
    }
    numbers = {
        key: changed
        for key, source in trace.numbers.items()
        if (changed := number(source, *key)) != source.value
    }
    unnamed = {
        index: (source.place, source.value, changed)
        for index, source in enumerate(trace.unnamed)
        if (changed := source.resized(evaluate, list, told=False)) != source.value
    }
    return Widths(factor, shapes, attributes, numbers, unnamed, pinned)


def _tables(model: nn.Module) -> Iterator[tuple[Key, Tensor]]:
    """Iterate over the floating-point tensors of several dimensions that nothing trains."""
    for _, path, name, tensor in owned_tensors(model):
        if tensor.ndim > 1 and tensor.is_floating_point() and not tensor.requires_grad:
            yield (path, name), tensor


def _tie(trace: SymbolicTrace, known: set[Atom]) -> bool:
    """Let widths on which numbers alone depend follow the widths that these numbers are powers of.

    No shape tells anything of `self.head_dim` where it is used for `head_dim ** -0.5` only.

    Returns:
        Whether there are any.
    """
    equations = trace.space.equations
    recorded = len(equations.recorded)

    def is_free(size: Expression) -> bool:
        resolved = equations.resolve(size)
        return not resolved.is_constant and not resolved.symbols() & known

    for source in (*trace.computed, *trace.unnamed):
        size = source.size()
        if size is None or equations.resolve(size).is_constant:
            continue
        if source.origin is not None:
            if is_free(source.origin) and source.origin.value == size.value:
                equations.equate(source.origin, size, source.place)
            continue
        # What made a plain number of a width is not known; `check_unnamed` sees whether it was one of
        # these, and has followed.
        others = [other for other in (size, *trace.sizes(source.path)) if not is_free(other)]
        for (path, _), value in trace.attributes.items():
            if path == source.path and isinstance(value, torch.SymInt):
                width = expression_of(value)
                equal = {equations.resolve(other) for other in others if other.value == width.value}
                near = {
                    o for o in equal if o.symbols() & equations.resolve(size).symbols()
                } or equal
                if is_free(width) and len(near) == 1:
                    equations.equate(width, near.pop(), source.place)
    return len(equations.recorded) > recorded


def _made_plain(equation: Equation, plain: Mapping[int, str]) -> str:
    """Return which code made the plain number that an equation sets a width to, if it is known."""
    numbers = [abs(c) for side in (equation.left, equation.right) for m, c in side.terms if not m]
    line = next((plain[number] for number in numbers if number in plain), None)
    if line is None:
        return ""
    return (
        f"; {line} makes a plain number of that value of a width, which a trace cannot follow, where "
        "`//` in the place of `int`, `round` or `/` would keep it a size"
    )


def _units(weights: list[Expression], multiple_of: int) -> dict[Atom, int]:
    """Return to what multiple each symbol in the sizes of the weights is to be rounded."""
    units: dict[Atom, int] = {}
    for size in weights:
        for atom in size.symbols():
            units.setdefault(atom, 1)
        if len(size.terms) == 1:
            ((monomial, coefficient),) = size.terms
            if len(monomial) == 1 and monomial[0].is_symbol:
                unit = multiple_of // math.gcd(multiple_of, coefficient)
                units[monomial[0]] = math.lcm(units[monomial[0]], unit)
    return units


def scaled(size: int, factor: float, unit: int = 1) -> int:
    """Return `size * factor` rounded half up to a positive multiple of `unit`."""
    return max(unit, math.floor(size * factor / unit + 0.5) * unit)


def widen(model: nn.Module, widths: Widths) -> nn.Module:
    """Return a copy of `model` with the sizes of `widths`.

    Tensors whose shape stays are copied, resized ones are NaN, but for those that hold a number that
    follows a width.
    """

    def make(_module: nn.Module, path: str, name: str, tensor: Tensor) -> Tensor:
        shape = widths.shapes.get((path, name), tuple(tensor.shape))
        if (path, name) in widths.numbers:
            return tensor.new_full(shape, widths.numbers[path, name])
        if shape == tuple(tensor.shape):
            return tensor.detach().clone()
        return tensor.new_full(shape, math.nan)

    wide = copy_with_tensors(model, make)
    holders = {**dict(wide.named_modules()), **configs(wide)}
    for (path, name), value in widths.attributes.items():
        holders[path].__dict__[name] = value
    return wide
