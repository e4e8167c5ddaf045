"""Gradients of all positions of a weight, kept beside `.grad`, which has those of live weights alone.

Whatever reads or changes gradients between the backward pass and the optimizer's step (clipping,
unscaling, logging, a sum over workers) then sees those of a sparse model, and the dense gradient has
to follow: by the factor by which the live part has changed.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from isoflop.errors import NoEffectWarning
from isoflop.sparsity.weights.sharding import full_tensor, is_sharded

_ROUNDING = 1e-4
"""By how much the squared cosine of two gradients may fall short of 1 if one is the other's multiple."""


class KeptGradient:
    """The gradient of a masked weight at all positions, summed over backward passes as `.grad` is.

    Attributes:
        total: The sum since `.grad` was zero; None before the first backward pass.
        left: What `.grad` was after the last backward pass.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget everything."""
        self.total: Tensor | None = None
        self.left: Tensor | None = None
        self._version = 0
        self._continues: bool | None = None
        self._stale: Tensor | None = None
        self._held_back: Tensor | None = None

    def before(self, grad: Tensor | None) -> None:
        """Find out whether `grad`, to which a gradient is about to be added, was zeroed meanwhile."""
        unchanged = grad is self.left and grad is not None and _version(grad) == self._version
        self._continues = self.total is not None and (
            unchanged or (grad is not None and bool(grad.any()))
        )
        # What an earlier step has left in `.grad` says nothing about this one.
        self._stale = None if grad is None or self._continues else grad.detach().clone()
        self._held_back = None

    def hold_back(self, coming: Tensor, mask: Tensor) -> None:
        """Remember the part off the mask of a gradient, of which only the rest will be added.

        It may also be added by nobody, but set as `.grad` by hand.
        """
        self._held_back = coming.detach().masked_fill(mask, 0)
        if not self._continues:
            self.total, self.left = coming.detach().clone(), None

    def after(self, grad: Tensor, mask: Tensor) -> None:
        """Add a gradient that has come to `grad`, and leave its live part there."""
        continues, self._continues = self._continues, None
        stale, self._stale = self._stale, None
        held_back, self._held_back = self._held_back, None
        if continues is None:  # sharded gradients come without notice
            continues = grad is self.left and _version(grad) == self._version + 1
        dense = grad.detach().clone()
        if continues and self.total is not None:
            dense += self.total.masked_fill(mask, 0)
        if stale is not None:
            dense -= stale
        if held_back is not None:
            dense += held_back
        grad.masked_fill_(~mask, 0)
        self.total, self.left, self._version = dense, grad, _version(grad)


@dataclass(frozen=True)
class Change:
    """How a gradient has changed since the backward pass.

    Attributes:
        factor: The multiple of the former gradient that is nearest to it; 1 if either is zero.
        plain: Whether it is just that multiple.
        zero: Whether it is zero.
    """

    factor: float
    plain: bool
    zero: bool


def changes(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Change]:
    """Return how each first gradient has changed to the second, and wait for the device once."""
    return [_change(*row) for row in _rows(_products(then, now) for then, now in pairs)]


def dense_gradients(
    weights: Mapping[str, tuple[KeptGradient, Tensor, Tensor]],
) -> dict[str, Tensor]:
    """Return the gradients of weights at all positions, for the optimizer's step.

    Args:
        weights: By name, what was kept, `.grad` as it is, and the mask.

    Returns:
        Those that are known. A gradient that was set by hand is taken as it is, if it has other
        positions than those of live weights.
    """
    names = list(weights)
    totals = {
        name: torch.zeros_like(grad) if kept.total is None else kept.total
        for name, (kept, grad, _) in weights.items()
    }

    def compared() -> list[Change]:
        pairs = []
        for name, (_, grad, mask) in weights.items():
            pairs.append((totals[name].masked_fill(~mask, 0), grad.masked_fill(~mask, 0)))
        return changes(pairs)

    found = compared()
    own = {name: kept.total is not None for name, (kept, *_) in weights.items()}
    # The hooks of backward passes come before gradients are reduced, by whatever reduces them. That
    # they were is seen by their change.
    spread = [name for name in names if not is_sharded(totals[name])]
    if spread and _any_worker([not change.plain for change in found], totals[spread[0]]):
        for name in spread:
            totals[name], own[name] = averaged(totals[name]), True
        found = compared()
    strays = _rows(
        [grad.masked_fill(mask, 0).count_nonzero()] for _, grad, mask in weights.values()
    )
    full = _rows([mask.all()] for *_, mask in weights.values())

    gradients, unknown = {}, []
    for name, change, (stray,), (no_zero,) in zip(names, found, strays, full, strict=True):
        kept, grad, mask = weights[name]
        if own[name] and (grad is kept.left or workers() > 1):
            gradients[name] = totals[name] * change.factor
            if stray:
                gradients[name] += grad.masked_fill(mask, 0)
        elif stray or no_zero or change.zero:
            gradients[name] = grad.detach().clone()
        elif own[name] and change.plain:
            gradients[name] = totals[name] * change.factor
        else:
            unknown.append(name)
    warn_of_unknown(unknown)
    return gradients


def warn_of_unknown(names: Sequence[str]) -> None:
    """Warn of weights whose gradient was set by hand, so that nothing is known of other positions."""
    if names:
        warnings.warn(
            f"The gradient of {', '.join(map(repr, names[:3]))}{' …' if names[3:] else ''} was set "
            "by hand, or changed by a hook, and says nothing of weights that are off: nothing is dropped "
            "or grown there after this step. Change `.grad` in place, or set the gradient at all "
            "positions, as `torch.autograd.grad` returns it in masked storage.",
            NoEffectWarning,
            stacklevel=2,
        )


def workers() -> int:
    """Return the number of workers of a distributed run, or 1."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def averaged(gradient: Tensor) -> Tensor:
    """Return the mean over all workers, all of which must call this."""
    if workers() == 1:
        return gradient
    gradient = gradient.contiguous()
    dist.all_reduce(gradient)
    return gradient.div_(workers())


def _any_worker(flags: Sequence[bool], like: Tensor) -> bool:
    """Return whether any flag is set on any worker of several; all must call this."""
    if workers() == 1:
        return False
    flag = torch.tensor(float(any(flags)), device=like.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _products(then: Tensor, now: Tensor) -> list[Tensor]:
    wide = torch.promote_types(then.dtype, torch.float32)
    then, now = then.to(wide), now.to(wide)
    return [(then * now).sum(), then.square().sum(), now.square().sum()]


def _rows(tensors: Any) -> list[list[float]]:
    """Return the values of rows of scalars, and wait for each device once."""
    rows = [[full_tensor(scalar.detach()).double() for scalar in row] for row in tensors]
    if not rows:
        return []
    return torch.stack([torch.stack(row).to(rows[0][0].device) for row in rows]).tolist()


def _change(product: float, then: float, now: float) -> Change:
    if not then or not now:
        return Change(1.0, not now, not now)
    factor = product / then
    plain = product * product >= (1 - _ROUNDING) * then * now
    return Change(factor if math.isfinite(factor) and factor else 1.0, plain, False)


def _version(tensor: Any) -> int:
    return (tensor.to_local() if is_sharded(tensor) else tensor)._version
