"""Training without mask updates."""

from dataclasses import dataclass

from isoflop.methods.base import METHODS, Method


@METHODS.register("static")
@dataclass(frozen=True, kw_only=True)
class Static(Method):
    """Random masks, drawn once before training and never changed.

    Formula: each layer's mask is uniform among all masks with its number of non-zeros. Nothing is
    dropped and nothing grows.

    Cost: the FLOPs of the sparse network in every step, ``3 f_S`` per sample (forward and both
    halves of the backward pass).

    Source: the static sparsity of Sparse-IFT, https://arxiv.org/abs/2303.11525, and the baseline
    "Static" of Evci et al. 2020, https://arxiv.org/abs/1911.11134.
    """
