"""Sparse Doped: a dense low-rank path beside a sparse one."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from isoflop.transforms.base import TRANSFORMS, LayerTransform, Target
from isoflop.transforms.layers import LayerShape, outer_bias, pointwise, with_outputs
from isoflop.transforms.nonlinearity import NONLINEARITIES


class DopedLayer(nn.Module):
    """`Vᵀ(Uᵀ z) + σ(θᵀ z)`, U and V dense, θ sparse, plus the bias of the layer it replaces.

    Args:
        layer: The dense layer.
        rank: Channels between U and V, over all groups; 0 for no low-rank path.
        nonlinearity: Name of σ.
    """

    def __init__(self, layer: nn.Module, rank: int, nonlinearity: str) -> None:
        super().__init__()
        outputs = layer.get_parameter("weight").shape[0]
        self.sparse = with_outputs(layer, outputs, bias=False)
        self.nonlinearity = NONLINEARITIES.get(nonlinearity)(layer, outputs)
        self.low_rank = (
            nn.Sequential(
                with_outputs(layer, rank, bias=False),
                pointwise(layer, rank, outputs, bias=False),
            )
            if rank
            else None
        )
        self.bias = outer_bias(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(…, Din)` to `(…, Dout)`, or `(B, cin, …)` to `(B, cout, …)`."""
        y = self.nonlinearity(self.sparse(x))
        if self.low_rank is not None:
            y = y + self.low_rank(x)
        return self.bias(y)


@TRANSFORMS.register("doped")
@dataclass(frozen=True)
class SparseDoped(LayerTransform):
    """Replace each layer by a dense low-rank path and a sparse one (paper, section 3.1).

    `d = s Din Dout / (Din + Dout)`, rounded down and per group, with `Din = cin kh kw` for a
    convolution; the density of θ repairs the rounding. Only θ is sparse. σ, on the sparse path, is
    BatchNorm and ReLU for convolutions, ReLU for Linear layers; ``nonlinearity="none"`` is the
    linear ablation of table 7.
    """

    def rank(self, shape: LayerShape) -> int:
        """Return `d` of a layer, over all its groups."""
        size = shape.rows * shape.columns / (shape.rows + shape.columns)
        return shape.groups * math.floor(self.sparsity * size + 1e-9)

    def replacement(self, layer: nn.Module, shape: LayerShape) -> nn.Module:
        """Return the two paths."""
        return DopedLayer(layer, self.rank(shape), self.nonlinearity)

    def targets(self, path: str, layer: nn.Module, shape: LayerShape) -> dict[str, Target]:
        """Only θ is sparse."""
        return {
            "sparse.weight": Target(path, "sparse", 1.0 - self.sparsity),
            "low_rank.0.weight": Target(path, "dense", gain=1.0),
            "low_rank.1.weight": Target(path, "dense"),
        }
