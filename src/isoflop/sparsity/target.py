"""One sparse weight, as methods and budgets see it, however it is stored."""

import math
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
    def outputs(self, positions: Tensor) -> Tensor:
        """Return the output of the layer to which each flat position of the weight belongs."""

    def active(self) -> tuple[Tensor, Tensor]:
        """Return the flat positions of the active weights, ascending, and the weights there."""
        weight, mask = self.dense()
        positions = mask.flatten().nonzero().flatten()
        return positions, weight.flatten()[positions]


def rows_of(positions: Tensor, shape: tuple[int, ...], *, flipped: bool) -> Tensor:
    """Return the output of each flat position of a weight (out, …), or (in, out) if `flipped`."""
    return positions % shape[1] if flipped else positions // math.prod(shape[1:])
