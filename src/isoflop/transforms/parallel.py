"""Sparse Parallel: a sum of `1 / (1 - s)` sparse branches, each with its own non-linearity."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from isoflop.transforms.base import TRANSFORMS, LayerTransform, Target
from isoflop.transforms.layers import LayerShape, outer_bias, with_outputs
from isoflop.transforms.nonlinearity import NONLINEARITIES


class ParallelBranches(nn.Module):
    """`Σ_j σ(θ_jᵀ z)`, plus the bias of the layer that it replaces.

    Args:
        layer: The dense layer.
        branches: Number of branches.
        nonlinearity: Name of σ, one module per branch.
    """

    def __init__(self, layer: nn.Module, branches: int, nonlinearity: str) -> None:
        super().__init__()
        outputs = layer.get_parameter("weight").shape[0]
        sigma = NONLINEARITIES.get(nonlinearity)
        self.branches = nn.ModuleList(
            with_outputs(layer, outputs, bias=False) for _ in range(branches)
        )
        self.nonlinearities = nn.ModuleList(sigma(layer, outputs) for _ in range(branches))
        self.bias = outer_bias(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(…, Din)` to `(…, Dout)`, or `(B, cin, …)` to `(B, cout, …)`."""
        pairs = zip(self.branches, self.nonlinearities, strict=True)
        first, *others = (sigma(branch(x)) for branch, sigma in pairs)
        for other in others:
            first = first + other
        return self.bias(first)


@TRANSFORMS.register("parallel")
@dataclass(frozen=True)
class SparseParallel(LayerTransform):
    """Replace each layer by parallel sparse branches of its own shape (paper, section 3.1).

    `1 / (1 - s)` branches, rounded; at least two where `s > 0`. Their density is what the rounded
    number leaves of the budget. σ is BatchNorm and ReLU per branch for convolutions, ReLU for
    Linear layers; ``nonlinearity="none"`` is the linear ablation of table 7.
    """

    @property
    def branches(self) -> int:
        """Number of branches."""
        if self.sparsity == 0.0:
            return 1
        # Exact halves such as 1 / (1 - 0.6) round up whatever the last bit of the quotient is.
        return max(2, math.floor(1.0 / (1.0 - self.sparsity) + 0.5 + 1e-9))

    def replacement(self, layer: nn.Module, shape: LayerShape) -> nn.Module:
        """Return the branches."""
        return ParallelBranches(layer, self.branches, self.nonlinearity)

    def targets(self, path: str, layer: nn.Module, shape: LayerShape) -> dict[str, Target]:
        """All branches are sparse; together they keep the variance of one layer."""
        n = self.branches
        target = Target(path, "sparse", 1.0 / n, gain=math.sqrt(2.0 / n))
        return {f"branches.{j}.weight": target for j in range(n)}
