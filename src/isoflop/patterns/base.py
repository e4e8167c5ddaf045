"""What every pattern can do."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self, TypeGuard

import torch
from torch import Tensor

from isoflop.registry import Registry


class Pattern(ABC):
    """Turns scores into boolean masks with exact numbers of active positions.

    Scores may be infinite but not NaN. Equal scores are told apart by position, never by the
    device, so all workers of a distributed run choose alike.

    ``str(pattern)`` is the text from which `parse_pattern` makes an equal pattern.
    """

    form: ClassVar[str] = ""
    """The form of the texts that `parse` reads, for error messages, such as ``"'2:4' (N:M)"``."""

    preselects: ClassVar[bool] = False
    """Whether `candidates` can tell what may grow before it is known what is dropped.

    Compressed storage takes this for methods that grow by gradients.
    """

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the pattern of a text such as ``"2:4"``; here None, which is left to names."""
        del text
        return None

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of the matrix output × input that are zero or non-zero together."""
        return 1, 1

    @abstractmethod
    def count(self, shape: tuple[int, ...], nnz: int) -> int:
        """Return how many active positions a mask gets where `nnz` are asked for.

        Args:
            shape: Shape of the mask.
            nnz: Number of positions asked for, at least 0.

        Returns:
            The possible number nearest to `nnz`; the smaller of two equally near. Never that of an
            empty mask.

        Raises:
            IsoflopError: The pattern does not apply to this shape.
        """

    @abstractmethod
    def check(self, mask: Tensor) -> bool:
        """Return whether the boolean `mask` obeys the pattern."""

    @abstractmethod
    def top(self, scores: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
        """Return the mask of highest total score with exactly `count` active positions.

        Args:
            scores: Any numeric tensor, shaped like the weight.
            count: A number that the method `count` returned for this shape.
            allowed: Boolean mask of the positions to choose from, at least `count` of them; all
                positions if None. A pattern that cannot be formed inside goes outside as little as
                it must.
        """

    @abstractmethod
    def random(
        self, shape: tuple[int, ...], count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a CPU mask of exactly `count` active positions, drawn at random."""

    @abstractmethod
    def drop_and_grow(
        self,
        mask: Tensor,
        drop_scores: Tensor,
        grow_scores: Tensor,
        drop: int,
        grow: int | None = None,
    ) -> Tensor:
        """Return a new mask: some active positions dropped, others grown.

        The `drop` active positions of lowest `drop_scores` are dropped. Then the `grow` positions
        of highest `grow_scores` become active, among all that did not survive: a position that was
        just dropped may come back.

        Args:
            mask: The present mask, which obeys the pattern.
            drop_scores: What an active position is worth; those of inactive positions are ignored.
            grow_scores: What activating a position is worth.
            drop: Number of positions to drop, at most the active ones.
            grow: Number of positions to grow; as many as are dropped if None.

        Returns:
            A mask with ``count(shape, mask.sum() - drop + grow)`` active positions.
        """

    def candidates(self, mask: Tensor, grow_scores: Tensor, grow: int) -> Tensor:
        """Return the inactive positions that `drop_and_grow` may grow, whatever it drops.

        If the grow scores, which are not negative, were zero at all other inactive positions,
        `drop_and_grow` would return the same masks.

        Args:
            mask: A mask that has all active positions of the one to be rewired, and maybe more.
            grow_scores: What activating a position is worth, at least 0.
            grow: The most positions to drop, and to grow.
        """
        raise NotImplementedError


PATTERNS: Registry[type[Pattern]] = Registry("pattern", "isoflop.patterns")


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether an option is an integer, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)
