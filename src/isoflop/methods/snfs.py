"""Sparse networks from scratch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isoflop.methods.base import METHODS, check_fraction
from isoflop.methods.drop_grow import DropGrow
from isoflop.methods.growth import MOMENTUM, Growth


@METHODS.register("snfs")
@dataclass(frozen=True, kw_only=True)
class SNFS(DropGrow):
    """SNFS: drop the weights of smallest magnitude, grow where the momentum of gradients is largest.

    Formula: M is the average of the dense gradients, ``M = momentum * M + (1 - momentum) * dL/dw``
    after each step. At each update, in each layer, the ``floor(f(t) * n_active)`` active weights of
    smallest ``|w|`` are dropped. What was dropped in all layers together is divided among them in
    proportion to the mean ``|M|`` of their active weights, and each layer grows its share at the
    positions of largest ``|M|`` among all that did not survive.

    Budget: layers gain and lose weights, the network as a whole does not. With a plan, it is MACs
    that are divided: the growth of all layers costs what was dropped, and the FLOPs of the plan
    hold after every update.

    Drop and grow: as in `RigL`. M is the method's own, since the optimizer's momentum of a masked
    weight is zero. A step with a non-finite gradient is left out of M and changes no mask.

    Defaults: ``alpha=0.5``, cosine schedule over the whole training, ``momentum=0.9``, and
    ``update_every=391``: the paper updates once per epoch, so pass ``update_every=len(loader)``.
    With ``redistribute=False`` each layer grows what it dropped.

    Cost: ``2 f_S + f_D`` per sample, since every step computes the dense gradient. The norm by
    which gradients are clipped is that of the dense gradient.

    Source: Dettmers and Zettlemoyer 2019, "Sparse networks from scratch: faster training without
    losing performance", section 3, https://arxiv.org/abs/1907.04840.

    Attributes:
        momentum: How slowly M forgets.
        redistribute: Whether weights move between layers.
    """

    grow_by: ClassVar[Growth] = MOMENTUM

    alpha: float = 0.5
    update_every: int = 391
    end_fraction: float = 1.0
    momentum: float = 0.9
    redistribute: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("momentum", self.momentum, 0.9)

    def remember(self, memory: Tensor | None, dense_grad: Tensor) -> Tensor:
        """Return the average of the gradients so far."""
        if memory is None:
            memory = torch.zeros_like(dense_grad)
        return memory.lerp(dense_grad, 1 - self.momentum)

    def grow_share(self, mask: Tensor, memory: Tensor | None) -> float | None:
        """Return the mean ``|M|`` of the active weights."""
        if not self.redistribute:
            return None
        assert memory is not None
        return float(memory.abs()[mask].double().mean()) if bool(mask.any()) else 0.0
