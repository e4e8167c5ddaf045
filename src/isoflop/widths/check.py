"""Refusing a model that was widened in part only."""

import math
from collections.abc import Collection

from torch import nn

from isoflop.errors import InputError, WideningError
from isoflop.flops.trace import Trace
from isoflop.surgery import ExampleInputs, weight_sides
from isoflop.widths.solve import ADVICE, Widths, scaled
from isoflop.widths.trace import SymbolicTrace

_TOLERATED = 0.05
"""Largest share of a model's MACs in weights that may keep one of their two widths."""


def check_widened(
    dense: nn.Module,
    wide: nn.Module,
    widths: Widths,
    trace: Trace,
    excluded: Collection[str] = (),
) -> None:
    """Refuse a result in which a hidden layer kept a width that should have grown.

    A forward pass that works is no proof: an equation with a constant can pin a width silently.
    Some widths are counts of something and stay rightly, such as the outputs, one per head, of the
    network that makes a relative position bias, or those, one per expert, of a router. So one of
    the two widths of a weight may stay where such weights are a small part of the model's cost.

    Args:
        dense: The model before.
        wide: The model after.
        widths: The sizes that it was given.
        trace: What one forward pass of the dense model showed.
        excluded: Paths of modules that may keep their widths.

    Raises:
        WideningError: The weight that kept its size is named.
    """
    factor = widths.factor
    old, new = dict(dense.named_parameters()), dict(wide.named_parameters())
    macs = trace.table.by_parameter()
    # Where only a part of a parameter multiplies, it is a table, whose rows are positions.
    whole = trace.table.prices({name: parameter.numel() for name, parameter in old.items()})
    held: list[tuple[int, str, str, int]] = []
    for name, cost in macs.items():
        before, after = tuple(old[name].shape), tuple(new[name].shape)
        if len(before) < 2 or name not in whole or name.rpartition(".")[0] in excluded:
            continue
        if not old[name].requires_grad and after == before:
            continue  # frozen
        module = dense.get_submodule(name.rpartition(".")[0])
        output, inputs = weight_sides(module, old[name])
        sides: dict[str, int] = {"output": output, "input": inputs}
        open_sides = {
            side: dim
            for side, dim in sides.items()
            if name not in (trace.last if side == "output" else trace.first)
        }
        stayed = [
            side
            for side, dim in open_sides.items()
            if scaled(before[dim], factor) > before[dim] > 1 and after[dim] == before[dim]
        ]
        if sum(new > old for old, new in zip(before, after, strict=True)) > 1:
            stayed = []  # two widths grew; the other is a count, as of heads in (width, heads, channels)
        if len(stayed) == len(open_sides) and stayed:
            held.append((trace.table.macs, name, stayed[0], sides[stayed[0]]))
        elif stayed:
            held.append((cost, name, stayed[0], sides[stayed[0]]))
        growth = math.prod(after) / math.prod(before)
        # Widths that small rounding may double are let pass.
        if growth > factor**3 and min(before[dim] for dim in sides.values()) >= 8:
            raise WideningError(
                f"The weight {name!r} ({type(module).__name__}, shape {before}) became {after}, more "
                f"than {factor:.3f} times as wide: {ADVICE}"
            )
    if sum(cost for cost, *_ in held) > _TOLERATED * trace.table.macs:
        _, name, side, dim = held[0]
        path, _, attribute = name.rpartition(".")
        module = dense.get_submodule(path)
        cause = widths.pinned.get((path, attribute, dim))
        raise WideningError(
            f"The {side} width of {name!r} ({type(module).__name__}, shape {tuple(old[name].shape)}) "
            f"did not grow with the others by {factor:.3f}: "
            f"{cause or 'the forward pass ties it to a size that must stay'}."
            f"{f' If it rightly stays, exclude {path!r}.' if path else ''} {ADVICE}"
        )


def check_unnamed(wide: nn.Module, widths: Widths, example_inputs: ExampleInputs) -> None:
    """Refuse a result in which a number that is no attribute should have followed a width.

    Such numbers may be computed from a size in each forward pass, and then follow it; so the wide
    model is run too, where there are any.

    Args:
        wide: The model after.
        widths: The sizes that it was given.
        example_inputs: Inputs that it takes.

    Raises:
        WideningError: The number and its place are named.
    """
    if not widths.unnamed:
        return
    trace = SymbolicTrace(wide)
    try:
        trace.run(example_inputs)
    except (InputError, WideningError):
        return  # whoever runs the model next says so
    for index, (place, old, new) in widths.unnamed.items():
        now = trace.unnamed[index].value if index < len(trace.unnamed) else old
        if abs(now - new) > 1e-5 * new:
            raise WideningError(
                f"In {place}, {old:.6g} is a power of the width over which a product of activations "
                f"sums, as the scale of attention is, and would be {new:.6g} in the widened model; but "
                "it comes from no attribute of a module and cannot follow. Keep it as an attribute, or "
                "compute it in the forward pass from the size of a tensor."
            )
