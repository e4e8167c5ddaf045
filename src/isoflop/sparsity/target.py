"""One sparse weight, as methods and budgets see it, however it is stored."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Target(ABC):
    """A sparse weight.

    What is returned may be dense, so it is asked of one target at a time, and not kept.

    Attributes:
        name: Full name of the weight in the dense model.
        nnz: How many non-zeros the plan or the sparsity allows.
    """

    name: str
    nnz: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, zeros included."""

    @property
    @abstractmethod
    def mask(self) -> Tensor:
        """The mask as it is now."""

    @property
    @abstractmethod
    def place(self) -> tuple[nn.Module, str]:
        """The module that owns the parameter which is trained, and its name there."""

    @property
    @abstractmethod
    def trained(self) -> Tensor:
        """The parameter that the optimizer trains."""

    @abstractmethod
    def mask_mark(self) -> object:
        """Return what differs once the mask has been changed or replaced."""

    @abstractmethod
    def count(self) -> Tensor:
        """Return how many weights are active, as the mask has it now."""

    @abstractmethod
    def stray(self) -> int:
        """Return how many weights off the mask are not zero, on this device."""

    @abstractmethod
    def dense(self) -> tuple[Tensor, Tensor]:
        """Return weight and mask, zeros included, and all of them if several workers share them."""

    @abstractmethod
    def choose(self, mask: Tensor) -> None:
        """Change the mask. New weights start at zero, and so does all that is known of them."""

    @abstractmethod
    def placed(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor of the weight's shape that lies where the weight lies."""

    @abstractmethod
    def by_output(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as a matrix, a row for each output of the layer.

        Within a row, what comes first in the weight comes first.
        """

    def active(self) -> tuple[Tensor, Tensor]:
        """Return the flat positions of the active weights, ascending, and the weights there."""
        weight, mask = self.dense()
        positions = mask.flatten().nonzero().flatten()
        return positions, weight.flatten()[positions]


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, and how many there are besides."""
    rest = len(names) - 5
    return ", ".join(map(repr, names[:5])) + (f" and {rest} more" if rest > 0 else "")
