"""One sparse weight, as methods and budgets see it, however it is stored."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


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
