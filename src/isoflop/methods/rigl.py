"""Rigging the lottery."""

from dataclasses import dataclass
from typing import ClassVar

from isoflop.methods.base import METHODS
from isoflop.methods.drop_grow import DropGrow
from isoflop.methods.growth import GRADIENT, Growth


@METHODS.register("rigl")
@dataclass(frozen=True, kw_only=True)
class RigL(DropGrow):
    """RigL: drop the weights of smallest magnitude, grow where the dense gradient is largest.

    Formula: in each layer and at each update, drop the ``k = floor(f(t) * n_active)`` active
    weights of smallest ``|w|``, and grow the k positions of largest ``|dL/dw|`` among all that did
    not survive, where ``f(t) = alpha / 2 * (1 + cos(pi * t / T_end))``. The gradient is that of the
    optimizer step just taken: accumulated over its micro-batches, reduced over all workers.

    Drop and grow: a just-dropped weight may regrow in the same update, and then keeps its value and
    optimizer state. A genuinely new weight starts at exactly zero with zero optimizer state. The
    number of active weights of a layer never changes. A step with a non-finite dense gradient
    changes no mask.

    Defaults: ``alpha=0.3``, ``update_every=100``, ``end_fraction=0.75``, cosine schedule. ΔT is for
    batches of common size: with larger batches there are fewer steps, and it should be smaller.

    Cost: ``3 f_S`` per sample, and one dense gradient every ΔT steps:
    ``(3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1)`` per sample.

    Source: Evci et al. 2020, "Rigging the lottery: making all tickets winners", section 3 and
    appendix on FLOPs, https://arxiv.org/abs/1911.11134. There the optimizer step is left out at
    updates; here it is taken, before the update, as in the code of Sparse-IFT.
    """

    grow_by: ClassVar[Growth] = GRADIENT
