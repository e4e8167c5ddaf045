"""One change of the masks, as methods ask for it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from isoflop.budget import nearest_counts
from isoflop.methods.drop_grow import DropGrow
from isoflop.sparsity.budget_spec import BudgetSpec
from isoflop.sparsity.target import Target
from isoflop.sparsity.trajectory import PruningTrajectory
from isoflop.sparsity.weights.sharding import full_tensor


class Update:
    """The masks right after an optimizer step, to be changed in place.

    Attributes:
        step: Optimizer steps taken.
        total_steps: Optimizer steps of the whole training.
        counts: Active weights of each masked weight, kept up to date.
        fraction: What part of the active weights could be replaced.
        new: How many weights of each layer became active that were not before.
        pruned: How many weights of each layer the pruning schedule took away.
    """

    def __init__(
        self,
        budget_spec: BudgetSpec,
        counts: list[int],
        step: int,
        total_steps: int,
        *,
        trajectory: PruningTrajectory | None,
        memory: Callable[[str], Tensor | None],
        trained: frozenset[str],
        finite: bool,
        generator: torch.Generator,
    ) -> None:
        self.step = step
        self.total_steps = total_steps
        self.counts = counts
        self.fraction = 0.0
        self.new: dict[str, int] = {}
        self.pruned: dict[str, int] = {}
        self._budget_spec = budget_spec
        self._trajectory = trajectory
        self._memory = memory
        self._trained = trained
        self._finite = finite
        self._generator = generator

    def prune(self) -> None:
        """Prune the active weights of smallest magnitude, as the method's schedule says."""
        trajectory = self._trajectory
        if trajectory is None or not trajectory.pruning_schedule.due(self.step, self.total_steps):
            return
        targets, before = self._budget_spec.targets, list(self.counts)
        ranked: Sequence[Tensor | None] = [None] * len(targets)
        if trajectory.pruning_schedule.per_layer:
            self.counts[:] = trajectory.counts(self.step, before)
        else:
            positions, weights = zip(*(target.active() for target in targets), strict=True)
            self.counts[:], ranked = self._budget_spec.ranked(
                [_scores(weight.abs()) for weight in weights],
                trajectory.cost(self.step),
                min_per_output=1,
                limits=before,
                positions=positions,
            )
        for i, target in enumerate(targets):
            weight, mask = target.dense()
            active = ranked[i]
            if active is None:
                active = _scores(weight.abs())[mask]
            scores = torch.full(weight.shape, -torch.inf, dtype=active.dtype, device=active.device)
            scores[mask] = active
            target.choose(
                self._budget_spec.pattern.top(scores, self.counts[i], allowed=mask.clone())
            )
            self.pruned[target.name] = before[i] - self.counts[i]

    def retopk(self) -> None:
        """Choose the weights of largest magnitude anew, masked ones included."""
        for target, count in zip(self._budget_spec.targets, self.counts, strict=True):
            scores = _scores(target.dense()[0].abs())
            target.choose(self._budget_spec.pattern.top(scores, count))

    def drop_and_grow(self, method: DropGrow) -> None:
        """Drop and grow in every layer that was trained in the last step.

        Gradients that overflowed say nothing about where to grow; after such a step nothing is
        dropped or grown.
        """
        self.fraction = method.drop_fraction(self.step, self.total_steps)
        if not self._finite:
            return
        indices = [i for i, t in enumerate(self._budget_spec.targets) if t.name in self._trained]
        drops, shares = [], []
        for i in indices:
            target = self._budget_spec.targets[i]
            weight, mask = target.dense()
            drops.append(method.drop_count(weight, mask, self.counts[i], self.fraction))
            shares.append(method.grow_share(mask, self._remembered(target)))
        grows = self._grows(indices, drops, shares)
        new: dict[str, Tensor] = {}
        for i, drop, grow in zip(indices, drops, grows, strict=True):
            target = self._budget_spec.targets[i]
            weight, mask = target.dense()
            memory = self._remembered(target)
            rewired = self._budget_spec.pattern.drop_and_grow(
                mask,
                _scores(method.drop_scores(weight, mask)),
                _scores(method.grow_scores(weight, mask, memory, self._generator)),
                drop,
                grow,
            )
            new[target.name] = (rewired & ~mask).sum()
            target.choose(rewired)
            kept = self.counts[i] - drop + grow
            self.counts[i] = self._budget_spec.pattern.count(tuple(weight.shape), kept)
        # Read only now, so that the device is waited for once.
        self.new = {name: int(count) for name, count in new.items()}

    def _remembered(self, target: Target) -> Tensor | None:
        memory = self._memory(target.name)
        return None if memory is None else full_tensor(memory)

    def _grows(
        self, indices: Sequence[int], drops: Sequence[int], shares: Sequence[float | None]
    ) -> list[int]:
        """Return how many weights each layer grows; together they cost what was dropped."""
        wanted = [share for share in shares if share is not None]
        if len(wanted) < len(shares) or not wanted or sum(wanted) <= 0:
            return list(drops)
        prices = [self._budget_spec.prices[i] for i in indices]
        sizes = [self._budget_spec.sizes[i] for i in indices]
        survivors = [self.counts[i] - drop for i, drop in zip(indices, drops, strict=True)]
        room = [size - count for size, count in zip(sizes, survivors, strict=True)]
        cost = sum(n * price for n, price in zip(drops, prices, strict=True))
        ideal = _divide(cost, prices, wanted, room)
        # A layer that survives without weights must grow one.
        floors = [0 if count else 1 for count in survivors]
        return nearest_counts(prices, room, ideal, cost, floors)

    def entry(self) -> dict[str, Any]:
        """Return the entry of the history."""
        entry: dict[str, Any] = {
            "step": self.step,
            "fraction": self.fraction,
            "new": self.new,
            "skipped": not self._finite,
        }
        return entry | ({"pruned": self.pruned} if self.pruned else {})


def _divide(
    cost: int, prices: Sequence[int], shares: Sequence[float], room: Sequence[int]
) -> list[float]:
    """Divide weights of total `cost` by `shares`; what a layer has no room for, others get."""
    full: set[int] = set()
    while True:
        rest = cost - sum(room[i] * prices[i] for i in full)
        open_layers = [i for i in range(len(room)) if i not in full]
        weight = sum(prices[i] * shares[i] for i in open_layers)
        factor = rest / weight if weight > 0 else 0.0
        over = {i for i in open_layers if factor * shares[i] > room[i]}
        if not over:
            return [float(room[i]) if i in full else factor * shares[i] for i in range(len(room))]
        full |= over


def _scores(scores: Tensor) -> Tensor:
    """Replace NaN, which has no rank, by the lowest."""
    if not scores.is_floating_point():
        return scores
    return scores.masked_fill(scores.isnan(), -math.inf)
