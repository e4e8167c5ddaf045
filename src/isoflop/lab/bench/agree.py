"""Whether a contestant computes what it should."""

from collections.abc import Mapping

from torch import Tensor

TOLERANCE = {"inference": 1e-3, "matmul": 1e-3, "training": 1e-1}
"""Largest relative error that rounding in float32 explains, by kind of workload.

In a training step rounding decides on which side of zero some inputs of ReLUs fall, which changes
gradients by a few percent. What is wrong is wrong by more.
"""

TOLERANCE_BF16 = {"inference": 1e-1, "matmul": 1e-2, "training": 5e-1}
"""The same where factors are rounded to bfloat16."""

_SMALL = 1e-3


def relative_error(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the largest relative error of any tensor, infinity if one is missing or not finite.

    The error of a tensor is the norm of the difference over the norm of the right one. Of tensors
    much smaller than the largest of their kind (such as gradients of biases before a BatchNorm,
    which are zero but for rounding) the error counts relative to that one.

    Args:
        found: Tensors by name, as the contestant computed them; further ones are ignored.
        right: The right ones. Names that begin with the same word are of a kind.
    """
    largest: dict[str, float] = {}
    for name, tensor in right.items():
        kind = name.partition(" ")[0]
        largest[kind] = max(largest.get(kind, 0.0), _norm(tensor))
    worst = 0.0
    for name, tensor in right.items():
        mine = found.get(name)
        if mine is None or mine.shape != tensor.shape or not bool(mine.isfinite().all()):
            return float("inf")
        scale = max(_norm(tensor), _SMALL * largest[name.partition(" ")[0]])
        difference = _norm(mine.detach().double() - tensor.double())
        if difference > 0:
            worst = max(worst, difference / scale if scale > 0 else float("inf"))
    return worst


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())
