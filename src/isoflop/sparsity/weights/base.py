"""How sparse weights, their gradients and the optimizer's state are stored: the protocol."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.sparsity.target import Target


class Gradients(ABC):
    """What is known of the gradients of one step.

    Attributes:
        trained: Names of the weights that have a gradient.
    """

    trained: frozenset[str]

    @abstractmethod
    def finite(self) -> bool:
        """Return whether the dense gradients, as far as they were asked for, may decide growth."""

    @abstractmethod
    def dense(self, name: str) -> Tensor | None:
        """Return the gradient of a weight at all positions; None if it was not asked for.

        Positions that cannot grow may be zero.
        """


class Storage(ABC):
    """Stores the sparse weights of a model. The sparsifier drives it through each step.

    A step goes: `expect`, backward passes, `show`, `take_gradients`, `ready_gradients`, the
    optimizer's own step, `hide`. With a closure, `hide` and the backward pass come inside.
    """

    name: ClassVar[str]
    """What is passed to `sparsify` to choose this storage."""

    @property
    @abstractmethod
    def targets(self) -> tuple[Target, ...]:
        """The weights, once `begin` has been called."""

    @abstractmethod
    def begin(self, masks: Sequence[Tensor]) -> None:
        """Make the weights sparse, and the optimizer's state with them."""

    @abstractmethod
    def before_backward(self, growth: Sequence[int | None] | None) -> None:
        """Get ready for the backward passes of a step.

        Args:
            growth: If the dense gradients of the step are needed: the most weights of each target
                that can grow after it, where those of largest gradient do; None otherwise.
        """

    @abstractmethod
    def collect_grads(self, scale: Tensor | None) -> Gradients:
        """Return what is needed of the gradients, which are multiplied by `scale`."""

    def mask_grads(self, scale: Tensor | None) -> None:
        """Make of the gradients, which are multiplied by `scale`, those that the optimizer sees."""
        del scale

    @abstractmethod
    def expose_trainable(self) -> None:
        """Put in place what the optimizer trains."""

    @abstractmethod
    def apply_masks(self, choose_masks: Callable[[], None] | None) -> None:
        """Put in place what the model computes with, with the masks that `choose_masks` chooses."""

    def rebind(self) -> None:
        """Take up weights that have replaced those that are stored, sharded for instance.

        Raises:
            IsoflopError: The storage replaces weights itself.
        """
        raise IsoflopError(
            f"Weights in {self.name} storage cannot be sharded. Use storage='masked'."
        )

    @abstractmethod
    def remove(self) -> None:
        """Let go of model and optimizer."""

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs besides the model."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        del state
