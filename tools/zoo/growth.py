"""Whether a widened model grew throughout, judged from nothing but the shapes of its weights."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from isoflop.flops.trace import Trace
from isoflop.plan import Plan

ROUNDING = 0.6
"""Part of the growth that a width must reach; rounding to multiples of the heads takes the rest."""


@dataclass(frozen=True)
class Growth:
    """How the weights of a widened model grew.

    Attributes:
        share: Part of the weights whose hidden dimensions all grew.
        kept: The others, with their shapes.
        ratio: MACs of the hidden weights without a zero, over those of the dense ones. Left out
            are the ends, which grow in one dimension, and depthwise convolutions, likewise.
    """

    share: float
    kept: dict[str, str]
    ratio: float | None


def growth(
    plan: Plan, trace: Trace, factor: float, fixed: Callable[[str], Collection[int]]
) -> Growth:
    """Measure how the weights of a model grew.

    Args:
        plan: The plan of `SparseWide`.
        trace: That of the dense model.
        factor: By how much a width is to grow.
        fixed: Returns the sizes of a weight, by its name, that are no widths.
    """
    layers = [layer for layer in plan.layers if len(layer.shape) >= 2]
    least = 1.0 + ROUNDING * (factor - 1.0)
    kept = {}
    dense = wide = 0
    for layer in layers:
        pairs = list(zip(layer.dense_shape, layer.shape, strict=True))
        grown = sum(new >= least * old for old, new in pairs)
        stays = [old == new for old, new in pairs]
        # Asked only where it matters, as the answer may need another model.
        sizes = fixed(layer.parameter) if any(stays) else ()
        widths = sum(
            size > 1 and not (s and size in sizes)
            for (size, _), s in zip(pairs, stays, strict=True)
        )
        ends = (layer.parameter in trace.first) + (layer.parameter in trace.last)
        # A depthwise convolution has one input channel; dimensions beyond the second are kernels,
        # but for experts, whose first is their number.
        both = sum(size > 1 for size in layer.dense_shape[:2])
        expected = min(both - ends, widths)
        if grown < expected:
            kept[layer.parameter] = f"{_text(layer.dense_shape)} → {_text(layer.shape)}"
        if expected == 2:
            dense += layer.source_macs
            wide += layer.unmasked_macs
    return Growth(
        share=1.0 - len(kept) / len(layers) if layers else 1.0,
        kept=kept,
        ratio=wide / dense if dense else None,
    )


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
