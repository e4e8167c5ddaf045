"""Sparse Parallel: a sum of `1 / (1 - s)` sparse branches, each with its own non-linearity."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isoflop.transforms.base import TRANSFORMS, LayerTransform, WeightSpec
from isoflop.transforms.layers import LayerShape, like, outputs_of
from isoflop.transforms.nonlinearity import NONLINEARITIES
from isoflop.transforms.replacement import ReplacedLayer


class ParallelBranches(ReplacedLayer):
    """`Σ_j σ(θ_jᵀ z)`, plus the bias of the layer that it replaces.

    Args:
        layer: The dense layer.
        branches: Number of branches.
        nonlinearity: Name of σ, one module per branch.
    """

    def __init__(self, layer: nn.Module, branches: int, nonlinearity: str) -> None:
        super().__init__(layer)
        outputs = outputs_of(layer)
        sigma = NONLINEARITIES.get(nonlinearity)
        self.branches = nn.ModuleList(like(layer) for _ in range(branches))
        self.nonlinearities = nn.ModuleList(sigma(layer, outputs) for _ in range(branches))

    def first_layer(self) -> nn.Module:
        """Return the first branch."""
        return self.branches[0]

    def compute(self, input: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        """Add up the branches."""
        pairs = zip(self.branches, self.nonlinearities, strict=True)
        first, *others = (sigma(branch(input, *args, **kwargs)) for branch, sigma in pairs)
        for other in others:
            first = first + other
        return self.add_bias(first)


@TRANSFORMS.register("parallel")
@dataclass(frozen=True)
class SparseParallel(LayerTransform):
    """Replace each layer by parallel sparse branches of its own shape (paper, section 3.1).

    `1 / (1 - s)` branches, rounded; at least two where `s > 0`. Their density is what the rounded
    number leaves of the budget. σ follows each branch: BatchNorm and ReLU for convolutions, as in
    the paper, and ReLU for Linear layers, see `isoflop.transforms.nonlinearity.auto`;
    ``nonlinearity="none"`` is the linear ablation of table 7.
    """

    @property
    def branches(self) -> int:
        """Number of branches."""
        if self.sparsity == 0.0:
            return 1
        # Exact halves such as 1 / (1 - 0.6) round up whatever the last bit of the quotient is.
        return max(2, math.floor(1.0 / (1.0 - self.sparsity) + 0.5 + 1e-9))

    def replacement(self, layer: nn.Module, shape: LayerShape) -> ReplacedLayer:
        """Return the branches."""
        return ParallelBranches(layer, self.branches, self.nonlinearity)

    def weight_specs(self, path: str, layer: nn.Module, shape: LayerShape) -> dict[str, WeightSpec]:
        """All branches are sparse; together they keep the variance of one layer."""
        n = self.branches
        spec = WeightSpec(path, "sparse", 1.0 / n, gain=math.sqrt(2.0 / n))
        return {f"branches.{j}.weight": spec for j in range(n)}
