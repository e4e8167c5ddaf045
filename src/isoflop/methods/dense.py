"""Training without masks."""

from dataclasses import dataclass
from typing import ClassVar

from isoflop.methods.base import METHODS, Method


@METHODS.register("dense")
@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """No masks at all: every weight trains, and the optimizer behaves as if left alone.

    Formula: none. The baseline that sparse training is compared with; a sparsifier with this method
    only counts steps, so that one training loop serves all methods.

    Cost: ``3 f_D`` per sample, the FLOPs of the dense network.

    Source: ordinary training.
    """

    masks_weights: ClassVar[bool] = False
