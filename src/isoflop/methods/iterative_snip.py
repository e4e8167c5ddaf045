"""Single-shot network pruning, in rounds."""

from dataclasses import dataclass

from isoflop.methods.base import METHODS
from isoflop.methods.prune_at_init import InRounds
from isoflop.methods.snip import SNIP


@METHODS.register("iterative_snip")
@dataclass(frozen=True, kw_only=True)
class IterativeSNIP(InRounds, SNIP):
    """Iterative SNIP: SNIP in rounds, each on the network that the one before has left.

    Formula: in round t of T, the ``D^(t/T)`` of the weights with the highest ``|w * dL/dw|`` stay,
    where the gradient is that of the network masked in round t - 1. What is pruned stays pruned.

    Defaults: ``rounds=10``, exponential schedule, one batch, ``min_per_output=1``.

    Cost: ``3 f_D`` per batch and round at most, then ``3 f_S`` per sample.

    Source: de Jorge et al. 2021, "Progressive skeletonization: trimming more fat from a network at
    initialization", section 4, https://arxiv.org/abs/2006.09081.

    Attributes:
        rounds: How often the network is scored and pruned.
        schedule: ``"exponential"`` or ``"linear"``, the trajectory of the density over the rounds.
    """

    rounds: int = 10
