"""New sizes from the equations of a trace."""

import math
from typing import Any

import torch
from torch import nn

from isoflop.errors import WideningError
from isoflop.widths.expressions import Atom, Expression
from isoflop.widths.nodes import expression_of
from isoflop.widths.trace import SymbolicTrace


def scale(size: int, factor: float, unit: int = 1) -> int:
    """Return `size * factor` rounded half up to a positive multiple of `unit`."""
    return max(unit, math.floor(size * factor / unit + 0.5) * unit)


def solve(trace: SymbolicTrace, factor: float, multiple_of: int) -> tuple[dict, dict]:
    equations = trace.space.equations
    def known() -> set[Atom]:
        sizes = (expression_of(size) for key in trace.parameters for size in trace.shapes[key])
        return {atom for size in sizes for atom in equations.resolve(size).symbols()}

    equations.solve(known)
    dims = {
        key: tuple(equations.resolve(expression_of(size)) for size in trace.shapes[key])
        for key in trace.parameters
    }
    units: dict[Atom, int] = {}
    for shape in dims.values():
        for expression in shape:
            for atom in expression.symbols():
                units.setdefault(atom, 1)
            if len(expression.terms) == 1 and not expression.is_constant:
                ((monomial, coefficient),) = expression.terms
                if len(monomial) == 1 and monomial[0].is_symbol:
                    unit = multiple_of // math.gcd(multiple_of, coefficient)
                    units[monomial[0]] = math.lcm(units[monomial[0]], unit)
    values = {atom: scale(atom.value, factor, unit) for atom, unit in units.items()}

    def new(size: Any) -> Any:
        if isinstance(size, (tuple, list)):
            return type(size)(new(s) for s in size)
        if not isinstance(size, (int, torch.SymInt)):
            return size
        return equations.resolve(expression_of(size)).evaluate(values)

    shapes = {key: new(shape) for key, shape in trace.shapes.items()}
    attributes = {key: new(value) for key, value in trace.attributes.items()}
    broken = [
        e
        for e in equations.recorded.values()
        if equations.resolve(e.left).evaluate(values) != equations.resolve(e.right).evaluate(values)
    ]
    if broken:
        raise WideningError(f"Broken {broken[0]}: resolved {equations.resolve(broken[0].left)} | {equations.resolve(broken[0].right)} ({len(broken)} more)")
    if any(size < 1 for shape in shapes.values() for size in shape):
        raise WideningError("negative")
    return shapes, attributes
