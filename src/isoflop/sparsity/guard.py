"""Notices what trains sparse weights without their sparsifier, which would leave them dense.

Optimizers of PyTorch call hooks before each step, also those that a sparsifier has not been told of.
Whatever else changes weights shows in the weights themselves.
"""

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from isoflop.errors import IsoflopError, NoEffectWarning, OptimizerError
from isoflop.masks import get_mask
from isoflop.sparsity.target import Target, some_of
from isoflop.sparsity.weights.sharding import local, stamp

_PASSES = 64
"""Backward passes without a step of the sparsifier's optimizer, after which it is asked why."""

_EVERY = 100
"""Steps after which weights are looked at even if nothing tells of a change."""


@dataclass(eq=False)
class _Watch:
    """A sparse weight, and who keeps it so.

    Attributes:
        name: Name of the weight.
        guard: The guard of its sparsifier, as long as that exists.
        removed: Whether the sparsifier was removed on purpose.
        warned: Whether it was warned of training after that.
    """

    name: str
    guard: Callable[[], "Guard | None"]
    removed: bool = False
    warned: bool = False


_WATCHED: weakref.WeakKeyDictionary[nn.Module, dict[str, _Watch]] = weakref.WeakKeyDictionary()
"""By module and name of the parameter. Parameters have no weak references: those forbid to swap them."""


class Guard:
    """Watches the sparse weights of one sparsifier.

    Args:
        targets: The weights.
        optimizer: The optimizer that the sparsifier hooks.
    """

    def __init__(self, targets: Sequence[Target], optimizer: Optimizer) -> None:
        self._targets = tuple(targets)
        self._optimizer = weakref.ref(optimizer)
        self._stepping = False
        self._passes = 0
        self._sample: Tensor | None = None
        self._handles: list[Any] = []
        # What tells whether weights and masks have changed, and the active weights of the masks.
        self._weights: list[Any] = []
        self._masks: list[tuple[Any, int]] = []
        self.watch()

    def watch(self) -> None:
        """Watch the parameters that are in place now."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for i, target in enumerate(self._targets):
            module, name = target.place
            watches = _WATCHED.setdefault(module, {})
            watches[name] = _Watch(target.name, weakref.ref(self))
            hook = _weakly(self, i)
            self._handles.append(target.trained.register_post_accumulate_grad_hook(hook))
        _hook_all_optimizers()

    def begin_step(self, step: int) -> None:
        """Check that the step about to be taken will train these weights, which are sparse.

        Args:
            step: Steps taken before.

        Raises:
            OptimizerError: The optimizer does not train a weight, which was replaced perhaps.
            IsoflopError: Weights off the mask are not zero.
        """
        optimizer = self._optimizer()
        assert optimizer is not None
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        lost = [
            t.name
            for t in self._targets
            if t.trained.requires_grad and id(t.trained) not in trained
        ]
        if lost:
            raise OptimizerError(
                f"The optimizer no longer trains {some_of(lost)}: a parameter was replaced, or taken "
                "from its param_groups. Change weights in place, set requires_grad=False where a layer "
                "is to be frozen, or call `sparsifier.remove()` and `sparsify` anew."
            )
        for i in range(len(self._targets)):
            self._check_zeros(i, always=step % _EVERY == 0)
        self._stepping = True

    def end_step(self, counts: Sequence[int]) -> None:
        """Take weights and masks as they are now for those that the step has left.

        Args:
            counts: Active weights of the masks.
        """
        self._stepping = False
        self._passes, self._sample = 0, None
        self._weights = [stamp(target.trained) for target in self._targets]
        marks = [target.mask_mark() for target in self._targets]
        self._masks = list(zip(marks, counts, strict=True))

    def counts(self) -> list[int]:
        """Return how many active weights each mask has now, whoever has changed it."""
        changed = [i for i, t in enumerate(self._targets) if t.mask_mark() != self._masks[i][0]]
        found = [self._targets[i].count() for i in changed]
        if found:
            numbers = torch.stack([n.to(found[0].device) for n in found]).tolist()
            for i, number in zip(changed, numbers, strict=True):
                self._masks[i] = self._targets[i].mask_mark(), number
        return [count for _, count in self._masks]

    def remove(self) -> None:
        """Watch no longer; warn if training goes on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for target in self._targets:
            module, name = target.place
            watch = _WATCHED.get(module, {}).get(name)
            if watch is not None and watch.guard() is self:
                watch.removed = True

    def refuses(self, optimizer: Optimizer) -> bool:
        """Return whether a step of `optimizer` would go past the sparsifier."""
        own = self._optimizer()
        if optimizer is own or self._stepping:
            return False
        # A wrapper, which steps by the optimizer that is hooked.
        return not any(value is own for value in vars(optimizer).values())

    def _check_zeros(self, i: int, *, always: bool) -> None:
        """Raise if a weight off the mask is not zero; look only if the weight has changed."""
        target = self._targets[i]
        now = stamp(target.trained)
        if now == self._weights[i] and not always:
            return
        stray = target.stray()
        if stray:
            raise IsoflopError(
                f"{stray:,} weights of {target.name!r} that its mask excludes are not zero: something "
                "besides the optimizer of the sparsifier has changed them, such as another optimizer, "
                "Lookahead, an average, or the state of a dense model. Train by the one optimizer that "
                "`sparsify` was given; after loading or averaging, call `isoflop.apply_masks(model)`."
            )
        self._weights[i] = now

    def _on_backward(self, i: int) -> None:
        """Look at a weight that a gradient has come to."""
        self._check_zeros(i, always=False)
        if i:
            return
        self._passes += 1
        sample = local(self._targets[0].trained.detach()).flatten()[:64]
        if self._passes == _PASSES // 2:
            self._sample = sample.clone()
        elif self._passes == _PASSES and self._sample is not None:
            if not torch.equal(sample, self._sample):
                warnings.warn(
                    f"{self._targets[0].name!r} changes, but the optimizer that `sparsify` was given has "
                    f"taken no step in {_PASSES} backward passes, so no mask is updated and nothing "
                    "keeps the weights sparse. Train by that optimizer.",
                    NoEffectWarning,
                    stacklevel=2,
                )
            self._sample = None


def is_kept(module: nn.Module, parameter: str) -> bool:
    """Return whether a sparsifier keeps a weight sparse at present."""
    watch = _WATCHED.get(module, {}).get(parameter)
    return watch is not None and not watch.removed and watch.guard() is not None


def _weakly(guard: Guard, i: int) -> Callable[[Tensor], None]:
    """Return the hook of a weight, which does not keep the guard alive: autograd would, for good."""
    reference = weakref.ref(guard)

    def hook(weight: Tensor) -> None:
        del weight
        alive = reference()
        if alive is not None:
            alive._on_backward(i)

    return hook


def _hook_all_optimizers() -> None:
    if not _HOOKED:
        hook: Any = _before_any_step
        _HOOKED.append(register_optimizer_step_pre_hook(hook))


_HOOKED: list[Any] = []


@torch.compiler.disable
def _before_any_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Refuse the step of an optimizer that trains sparse weights without their sparsifier."""
    del args, kwargs
    strangers: dict[int, _Watch] = {}
    for module, watches in list(_WATCHED.items()):
        for name, watch in watches.items():
            guard, weight = watch.guard(), module._parameters.get(name)
            if guard is not None and not watch.removed:
                outside = guard.refuses(optimizer)
            else:
                outside = get_mask(module, name) is not None and not watch.warned
            if outside and weight is not None:
                strangers[id(weight)] = watch
    if not strangers:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = [strangers[id(p)] for p in parameters if id(p) in strangers]
    kept = [watch.name for watch in found if not watch.removed]
    again = "isoflop.sparsify(model, optimizer, 'static', masks, total_steps=…)"
    kind = type(optimizer).__name__
    if kept:
        raise OptimizerError(
            f"This {kind} trains {some_of(kept)}, but their sparsifier was made for another optimizer, "
            "so nothing would keep them sparse. Step by that optimizer alone, and load states into it; "
            "or, to go on with a new one, take `masks = sparsifier.masks`, call `sparsifier.remove()` "
            f"and then `{again}`."
        )
    if found:
        for watch in found:
            watch.warned = True
        warnings.warn(
            f"This {kind} trains {some_of([watch.name for watch in found])}, whose sparsifier was "
            "removed, so they become dense. To keep them sparse, call "
            f"`{again}` with the masks that `sparsifier.masks` still has.",
            NoEffectWarning,
            stacklevel=2,
        )
