"""How the weights off the mask are stored, and what the optimizer may do with them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from isoflop.sparsity.targets import Target


class MaskedWeights:
    """Weights off the mask are zero, and so is all that the optimizer remembers of them."""

    def __init__(self, targets: Sequence[Target], optimizer: Optimizer) -> None:
        self._targets = targets
        self._optimizer = optimizer

    def adopt(self, name: str, weight: Tensor, mask: Tensor) -> None:
        """Remember what is needed of a weight that `mask` is about to zero. Nothing is."""
        del name, weight, mask

    def mask_gradients(self) -> None:
        """Zero the gradients off the masks."""
        for target in self._targets:
            grad = target.weight.grad
            if grad is not None:
                _zero_where(~target.mask, [grad])

    def begin(self) -> None:
        """Make everything right once the masks have been set."""
        self.hide(None)

    def show(self) -> None:
        """Put in place what the optimizer trains. That is there."""

    def pull(self, scale: Tensor | None) -> None:
        """Add to the gradients, which are multiplied by `scale`, what only the optimizer sees."""
        del scale

    def hide(self, choose_masks: Callable[[], None] | None) -> None:
        """Zero weights and optimizer state off the masks, after `choose_masks` has changed them."""
        if choose_masks is not None:
            # A weight that grows must have been zero, with zero state, before.
            self.hide(None)
            choose_masks()
        with torch.no_grad():
            for target in self._targets:
                weight = target.weight
                state = self._optimizer.state.get(weight, {})
                alike = (t for t in _tensors(state) if t.shape == weight.shape)
                _zero_where(~target.mask, itertools.chain([weight], alike))
            self._mask_flat_state()

    def _mask_flat_state(self) -> None:
        """Mask what an optimizer such as LBFGS remembers of all parameters in one row."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        length = sum(p.numel() for p in parameters)
        owners = {id(t.weight): t for t in self._targets}
        shapes = {p.shape for p in parameters}
        flat = [
            tensor
            for state in self._optimizer.state.values()
            for tensor in _tensors(state)
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

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs besides the model."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        del state


class TrainedWeights(MaskedWeights):
    """Weights off the mask go on training, but only the optimizer sees them.

    Args:
        targets: The masked weights.
        optimizer: The optimizer.
        decay: How strongly weights off the mask are pulled to zero.
    """

    def __init__(self, targets: Sequence[Target], optimizer: Optimizer, decay: float) -> None:
        super().__init__(targets, optimizer)
        self._decay = decay
        # The weights off the mask, zero elsewhere.
        self._hidden: dict[str, Tensor] = {}

    def adopt(self, name: str, weight: Tensor, mask: Tensor) -> None:
        """Remember the part of `weight` that `mask` is about to zero."""
        self._hidden[name] = weight.detach().masked_fill(mask, 0)

    def mask_gradients(self) -> None:
        """Leave the gradients as they are: the mask is straight through."""

    def begin(self) -> None:
        """Leave the optimizer's state as it is: all weights are in training."""

    def show(self) -> None:
        """Put the weights off the mask back in place."""
        with torch.no_grad():
            for target in self._targets:
                target.weight.add_(self._hidden[target.name])

    def pull(self, scale: Tensor | None) -> None:
        """Add the pull to zero to the gradients of weights off the mask."""
        with torch.no_grad():
            for target in self._targets:
                grad = target.weight.grad
                if grad is not None:
                    pull = self._decay * self._hidden[target.name]
                    grad.add_(pull if scale is None else pull * scale)

    def hide(self, choose_masks: Callable[[], None] | None) -> None:
        """Take the weights off the masks away, after `choose_masks` has changed them."""
        with torch.no_grad():
            if choose_masks is not None:
                choose_masks()
            for target in self._targets:
                self.adopt(target.name, target.weight, target.mask)
                _zero_where(~target.mask, [target.weight])

    def state(self) -> dict[str, Tensor]:
        """Return the weights off the mask."""
        return {name: tensor.clone() for name, tensor in self._hidden.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue with these weights off the mask."""
        for target in self._targets:
            weight = target.weight
            self._hidden[target.name] = torch.empty_like(weight, requires_grad=False).copy_(
                state[target.name]
            )


def _zero_where(inactive: Tensor, tensors: Iterable[Tensor]) -> None:
    """Zero the inactive positions, NaN and infinities included, which a product would keep."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.masked_fill_(inactive, 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in an optimizer's state, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
