"""The masked weights as a budget sees them: sizes, prices, and who gets how many."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from isoflop.budget import nearest_counts
from isoflop.errors import BudgetError, LayerCollapseWarning
from isoflop.patterns import Pattern
from isoflop.patterns.select import counts_within, highest_of_rows
from isoflop.sparsity.target import Target, some_of


@dataclass(frozen=True)
class BudgetSpec:
    """The masked weights, what one weight of each costs, and which masks they may have.

    Attributes:
        targets: The masked weights.
        prices: What a weight of each costs: its MACs, or a multiple of
            them, when there is a FLOP budget, else 1.
        pattern: The pattern of all masks.
    """

    targets: tuple[Target, ...]
    prices: tuple[int, ...]
    pattern: Pattern

    @property
    def names(self) -> list[str]:
        """Parameter names."""
        return [target.name for target in self.targets]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the weights."""
        return [target.shape for target in self.targets]

    @property
    def sizes(self) -> list[int]:
        """Numbers of weights, zeros included."""
        return [math.prod(shape) for shape in self.shapes]

    def cost(self, counts: Sequence[int]) -> int:
        """Return what these numbers of weights cost together."""
        return sum(n * price for n, price in zip(counts, self.prices, strict=True))

    def feasible(self, counts: Sequence[int]) -> list[int]:
        """Return the counts nearest to these that masks of the pattern can have."""
        return [self.pattern.count(s, n) for s, n in zip(self.shapes, counts, strict=True)]

    def nearest(
        self,
        ideal: Sequence[float],
        cost: int,
        *,
        limits: Sequence[int],
        floors: Sequence[int] | None = None,
    ) -> list[int]:
        """Return feasible counts near `ideal` that together cost as nearly `cost` as can be."""
        counts = nearest_counts(self.prices, limits, ideal, cost, floors)
        return self.feasible(counts)

    def ranked(
        self,
        scores: Sequence[Tensor],
        cost: int,
        *,
        min_per_output: int,
        limits: Sequence[int] | None = None,
        positions: Sequence[Tensor] | None = None,
        by_weight: bool = False,
    ) -> tuple[list[int], list[Tensor]]:
        """Spend `cost` on the highest scores of the whole network.

        The weights of all layers are ranked together (of equal scores, first those of the earlier
        layer, then those of lower index), and taken in this order while the cost lasts. What is
        left, less than the price of one weight, is spent in the layers of the lowest price.

        Args:
            scores: What each weight is worth, in any shape.
            cost: What all weights together may cost.
            min_per_output: How many weights each output keeps, whatever the scores of others.
            limits: The most weights that each layer can have; its size by default.
            positions: The ascending flat positions of the weights that have scores, where those are
                not all.
            by_weight: Let every weight cost 1, rather than its price.

        Returns:
            Feasible counts, and the scores in which the weights that each output keeps are
            infinite: the pattern chooses by these.

        Raises:
            BudgetError: The cost does not suffice for `min_per_output`, or, if that is 0, some
                layer would keep no weight at all.
        """
        limits = self.sizes if limits is None else limits
        prices = [1] * len(self.prices) if by_weight else list(self.prices)
        free = counts_within(scores, prices, cost)
        empty = [name for name, n in zip(self.names, free, strict=True) if n == 0]
        if empty and min_per_output == 0:
            raise BudgetError(
                f"The scores leave no weight in {some_of(empty)}: the layer collapses. Use a lower "
                "sparsity, or min_per_output=1, which keeps the best weight of every output."
            )
        if empty:
            warnings.warn(
                f"The scores alone would leave no weight in {some_of(empty)}. There, "
                f"{min_per_output} of each output stay nevertheless (min_per_output).",
                LayerCollapseWarning,
                stacklevel=2,
            )
        everywhere = [None] * len(scores) if positions is None else positions
        kept = [
            _protect(target, score, at, min_per_output)
            for target, score, at in zip(self.targets, scores, everywhere, strict=True)
        ]
        floors = [max(1, int(score.isposinf().sum())) for score in kept]
        least = sum(n * price for n, price in zip(floors, prices, strict=True))
        if least > cost:
            raise BudgetError(
                f"{min_per_output} weight of each output alone costs {least:,}, more than the "
                f"budget of {cost:,}. Use a lower sparsity, or min_per_output=0."
            )
        counts = counts_within(kept, prices, cost)
        counts = nearest_counts(prices, limits, counts, cost, floors)
        return self.feasible(counts), kept

    def select(self, scores: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Return the masks of the `counts` highest scores of each layer."""
        return [self.pattern.top(s, n) for s, n in zip(scores, counts, strict=True)]


def whole_prices(prices: Sequence[int | Fraction]) -> list[int]:
    """Return prices in a unit in which all are integers; costs are in the same unit then."""
    unit = math.lcm(*(price.denominator for price in prices))
    return [int(price * unit) for price in prices]


def _protect(target: Target, scores: Tensor, positions: Tensor | None, count: int) -> Tensor:
    """Return `scores` with the `count` highest of each output set to infinity."""
    if count == 0:
        return scores
    flat = scores.flatten()
    if positions is not None:
        flat = flat.new_full((math.prod(target.shape),), -torch.inf).index_copy(0, positions, flat)
    best = highest_of_rows(target.by_output(flat.view(target.shape)), count)
    every = torch.arange(len(flat), device=flat.device).view(target.shape)
    kept = flat.index_fill(0, target.by_output(every)[best], torch.inf)
    # What is excluded for good cannot be kept.
    kept = kept.masked_fill(flat.isneginf(), -torch.inf)
    return (kept if positions is None else kept[positions]).view(scores.shape)
