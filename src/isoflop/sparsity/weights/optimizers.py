"""What an optimizer remembers of its parameters."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only


def state_tensors(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """Return the tensors of the optimizer's state of `parameter` that have its shape."""
    # The state is a defaultdict, which a look-up must not fill.
    state = optimizer.state.get(parameter, {})
    return [tensor for tensor in tensors_in(state) if tensor.shape == parameter.shape]


def convert_state(
    optimizer: Optimizer, parameter: Tensor, convert: Callable[[Tensor], Tensor]
) -> None:
    """Convert the tensors of the optimizer's state of `parameter` that have its shape."""
    state = optimizer.state.get(parameter)
    if state is not None:
        optimizer.state[parameter] = tree_map_only(
            Tensor, lambda t: convert(t) if t.shape == parameter.shape else t, state
        )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in an optimizer's state, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
