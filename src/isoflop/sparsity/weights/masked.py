"""Dense weights with masks beside them: for every device, method and optimizer."""

import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from isoflop.masks import get_mask, set_mask
from isoflop.sparsity.gradients import KeptGradient, dense_gradients
from isoflop.sparsity.targets import MaskedTarget
from isoflop.sparsity.weights.base import Gradients, Storage
from isoflop.sparsity.weights.optimizers import state_tensors, tensors_in
from isoflop.sparsity.weights.sharding import copy_into, full_tensor


class MaskedGradients(Gradients):
    """The dense gradients.

    Args:
        trained: Names of the weights that have a gradient.
        dense: The gradients at all positions, by name, if they are needed.
    """

    def __init__(self, trained: Iterable[str], dense: Mapping[str, Tensor]) -> None:
        self.trained = frozenset(trained)
        self._dense = dense

    def finite(self) -> bool:
        """Return whether all are finite, and wait for the device once, not for every tensor."""
        flags = [full_tensor(tensor.isfinite().all()) for tensor in self._dense.values()]
        return not flags or bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())

    def dense(self, name: str) -> Tensor | None:
        """Return the gradient of a weight at all positions, if it was needed."""
        return self._dense.get(name)


class MaskedStorage(Storage):
    """Weights off the mask are zero, and so is all that the optimizer remembers of them."""

    name: ClassVar[str] = "masked"

    def __init__(self, targets: Sequence[MaskedTarget], optimizer: Optimizer) -> None:
        self._targets = tuple(targets)
        self._optimizer = optimizer
        self._observed = False
        self._kept = [KeptGradient() for _ in self._targets]
        self._handles: list[RemovableHandle] = []

    @property
    def targets(self) -> tuple[MaskedTarget, ...]:
        """The weights."""
        return self._targets

    def begin(self, masks: Sequence[Tensor]) -> None:
        """Set the masks; zero weights and the optimizer's state off them."""
        self._set_masks(masks)
        self.apply_masks(None)

    def before_backward(self, growth: Sequence[int | None] | None) -> None:
        """Keep the dense gradients of the next step, if they are needed."""
        self._observed = growth is not None
        for kept in self._kept:
            kept.forget()

    def collect_grads(self, scale: Tensor | None) -> Gradients:
        """Return the dense gradients, if they are needed; they follow what was done to `.grad`."""
        grads = {t.name: t.weight.grad for t in self.targets if t.weight.grad is not None}
        if not self._observed:
            return MaskedGradients(grads, {})
        dense = dense_gradients(
            {
                target.name: (kept, grads[target.name], target.mask)
                for target, kept in zip(self.targets, self._kept, strict=True)
                if target.name in grads
            }
        )
        if scale is not None:
            dense = {name: gradient / scale for name, gradient in dense.items()}
        return MaskedGradients(dense, dense)

    def mask_grads(self, scale: Tensor | None) -> None:
        """Zero the gradients off the masks."""
        del scale
        for target in self.targets:
            grad = target.weight.grad
            if grad is not None:
                _zero_where(~target.mask, [grad])

    def expose_trainable(self) -> None:
        """Do nothing: what the optimizer trains is in place."""

    def rebind(self) -> None:
        """Put masks, and all that lies like its weight, to the weights that are in place now."""
        masks = [get_mask(target.module, target.parameter) for target in self.targets]
        state = self.state()
        self.remove()
        self._set_masks([full_tensor(mask) for mask in masks])
        self.load(state)

    def remove(self) -> None:
        """Leave the gradients alone from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def apply_masks(self, choose_masks: Callable[[], None] | None) -> None:
        """Zero weights and optimizer state off the masks, after `choose_masks` has changed them."""
        if choose_masks is not None:
            # A weight that grows must have been zero, with zero state, before.
            self.apply_masks(None)
            choose_masks()
        with torch.no_grad():
            for target in self.targets:
                weight = target.weight
                alike = state_tensors(self._optimizer, weight)
                _zero_where(~target.mask, itertools.chain([weight], alike))
            self._mask_flat_state()

    def _mask_flat_state(self) -> None:
        """Mask what an optimizer such as LBFGS remembers of all parameters in one row."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        length = sum(p.numel() for p in parameters)
        owners = {id(t.weight): t for t in self.targets}
        shapes = {p.shape for p in parameters}
        flat = [
            tensor
            for state in self._optimizer.state.values()
            for tensor in tensors_in(state)
            if tensor.ndim == 1 and len(tensor) == length and tensor.shape not in shapes
        ]
        if not flat or not owners:
            return
        parts = [
            ~owners[id(p)].mask.flatten()
            if id(p) in owners
            else torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
            for p in parameters
        ]
        _zero_where(torch.cat(parts), flat)

    def _set_masks(self, masks: Sequence[Tensor]) -> None:
        for target, mask in zip(self.targets, masks, strict=True):
            weight = target.weight
            # `empty_like` takes over device and memory layout of the weight.
            own = torch.empty_like(weight, dtype=torch.bool, requires_grad=False)
            copy_into(own, mask)
            self._adopt(target.name, weight, own)
            set_mask(target.module, target.parameter, own)
        self._watch()

    def _watch(self) -> None:
        """Follow the gradients of the weights from pass to pass.

        Autograd's hooks are invisible to the garbage collector; a strong reference from the weight to
        the storage, and so back to the weight, would never be freed.
        """
        reference = weakref.ref(self)

        def before(i: int, grad: Tensor) -> Tensor | None:
            storage = reference()
            return None if storage is None else storage._receive(i, grad)

        def after(i: int, weight: Tensor) -> None:
            storage = reference()
            if storage is not None and weight.grad is not None:
                storage._mask_gradient(i, weight.grad)

        for i, target in enumerate(self.targets):
            weight = target.weight
            self._handles.append(weight.register_hook(functools.partial(before, i)))
            hook = weight.register_post_accumulate_grad_hook(functools.partial(after, i))
            self._handles.append(hook)
            # The user's own hooks, of whenever, see the gradients of live weights too. Autograd goes by
            # the order of insertion.
            hooks: Any = weight._post_accumulate_grad_hooks
            for key in [key for key in hooks if key != hook.id]:
                hooks[key] = hooks.pop(key)

    def _receive(self, i: int, grad: Tensor) -> Tensor | None:
        """Take notice of a gradient, and return another in its place where that must be.

        A gradient that will be differentiated again (`create_graph`) is that of live weights from the
        context: a penalty on its norm, say, would count weights that are not there.
        """
        target, kept = self.targets[i], self._kept[i]
        if self._observed:
            kept.before(target.weight.grad)
        if not torch.is_grad_enabled():
            return None
        if self._observed:
            kept.hold_back(grad, target.mask)
        return grad.masked_fill(~target.mask, 0)

    def _mask_gradient(self, i: int, grad: Tensor) -> None:
        """Zero the gradient of masked weights as soon as it is accumulated.

        The optimizer's hooks would do for training, but they come too late for whatever reads
        gradients in between: clipping would measure the norm of weights that are not there. What is
        needed of dense gradients is kept apart.
        """
        mask = self.targets[i].mask
        if self._observed:
            self._kept[i].after(grad, mask)
        else:
            grad.masked_fill_(~mask, 0)

    def _adopt(self, name: str, weight: Tensor, mask: Tensor) -> None:
        """Remember what is needed of a weight that `mask` is about to zero. Nothing is."""


class TrainedStorage(MaskedStorage):
    """Weights off the mask go on training, but only the optimizer sees them.

    Args:
        targets: The masked weights.
        optimizer: The optimizer.
        decay: How strongly weights off the mask are pulled to zero.
    """

    def __init__(self, targets: Sequence[MaskedTarget], optimizer: Optimizer, decay: float) -> None:
        super().__init__(targets, optimizer)
        self._decay = decay
        # The weights off the mask, zero elsewhere.
        self._hidden: dict[str, Tensor] = {}

    def _adopt(self, name: str, weight: Tensor, mask: Tensor) -> None:
        """Remember the part of `weight` that `mask` is about to zero."""
        self._hidden[name] = weight.detach().masked_fill(mask, 0)

    def _receive(self, i: int, grad: Tensor) -> Tensor | None:
        """Leave the gradients of masked weights, which are trained too, while masks change."""
        return None if self._observed else super()._receive(i, grad)

    def _mask_gradient(self, i: int, grad: Tensor) -> None:
        """Leave the gradients of masked weights, which are trained too, while masks change."""
        if not self._observed:
            super()._mask_gradient(i, grad)

    def begin(self, masks: Sequence[Tensor]) -> None:
        """Set the masks; leave the optimizer's state as it is: all weights are in training."""
        self._set_masks(masks)

    def collect_grads(self, scale: Tensor | None) -> Gradients:
        """Copy nothing: masks follow the weights, not the gradients."""
        del scale
        return MaskedGradients((t.name for t in self.targets if t.weight.grad is not None), {})

    def expose_trainable(self) -> None:
        """Put the weights off the mask back in place."""
        with torch.no_grad():
            for target in self.targets:
                target.weight.add_(self._hidden[target.name])

    def mask_grads(self, scale: Tensor | None) -> None:
        """Add the pull to zero to the gradients of weights off the mask, and mask none."""
        with torch.no_grad():
            for target in self.targets:
                grad = target.weight.grad
                if grad is not None:
                    pull = self._decay * self._hidden[target.name]
                    grad.add_(pull if scale is None else pull * scale)

    def apply_masks(self, choose_masks: Callable[[], None] | None) -> None:
        """Take the weights off the masks away, after `choose_masks` has changed them."""
        with torch.no_grad():
            if choose_masks is not None:
                choose_masks()
            for target in self.targets:
                self._adopt(target.name, target.weight, target.mask)
                _zero_where(~target.mask, [target.weight])

    def state(self) -> dict[str, Tensor]:
        """Return the weights off the mask."""
        return {name: tensor.clone() for name, tensor in self._hidden.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue with these weights off the mask."""
        for target in self.targets:
            self._hidden[target.name] = target.placed(state[target.name])


def _zero_where(inactive: Tensor, tensors: Iterable[Tensor]) -> None:
    """Zero the inactive positions, NaN and infinities included, which a product would keep."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.masked_fill_(inactive, 0)
