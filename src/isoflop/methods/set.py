"""Sparse evolutionary training."""

from dataclasses import dataclass
from typing import ClassVar

from isoflop.methods.base import METHODS
from isoflop.methods.drop_grow import DropGrow
from isoflop.methods.growth import RANDOM, Growth


@METHODS.register("set")
@dataclass(frozen=True, kw_only=True)
class SET(DropGrow):
    """SET: drop the weights of smallest magnitude, grow at random.

    Formula: in each layer and at each update, drop the ``k = floor(f(t) * n_active)`` active
    weights of smallest ``|w|``, and grow k positions uniformly at random among all that did not
    survive.

    Drop and grow: a just-dropped weight may regrow in the same update, and then keeps its value and
    optimizer state. A genuinely new weight starts at exactly zero with zero optimizer state. The
    number of active weights of a layer never changes.

    Defaults: ``alpha=0.3``, ``update_every=100``, ``end_fraction=0.75``, cosine schedule, as RigL.

    Cost: ``3 f_S`` per sample; no dense gradient is ever needed.

    Source: Mocanu et al. 2018, https://arxiv.org/abs/1707.04780, in the form compared with RigL by
    Evci et al. 2020, section 3, https://arxiv.org/abs/1911.11134. The original is `SETOriginal`.
    """

    grow_by: ClassVar[Growth] = RANDOM
