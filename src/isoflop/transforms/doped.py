"""Sparse Doped: a dense low-rank path beside a sparse one."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isoflop.transforms.base import TRANSFORMS, LayerTransform, WeightSpec
from isoflop.transforms.layers import LayerShape, factors, like, outputs_of, through_factors
from isoflop.transforms.nonlinearity import NONLINEARITIES
from isoflop.transforms.replacement import ReplacedLayer


class DopedLayer(ReplacedLayer):
    """`Vᵀ(Uᵀ z) + σ(θᵀ z)`, U and V dense, θ sparse, plus the bias of the layer it replaces.

    Args:
        layer: The dense layer.
        rank: Channels between U and V, over all groups; 0 for no low-rank path.
        nonlinearity: Name of σ.
    """

    def __init__(self, layer: nn.Module, rank: int, nonlinearity: str) -> None:
        super().__init__(layer)
        self.sparse = like(layer)
        self.nonlinearity = NONLINEARITIES.get(nonlinearity)(layer, outputs_of(layer))
        self.low_rank = nn.Sequential(*factors(layer, rank)) if rank else None

    def first_layer(self) -> nn.Module:
        """Return the sparse layer."""
        return self.sparse

    def compute(self, input: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        """Add up the two paths."""
        y = self.nonlinearity(self.sparse(input, *args, **kwargs))
        if self.low_rank is not None:
            down, up = self.low_rank
            y = y + through_factors(down, None, up, input, *args, **kwargs)
        return self.add_bias(y)


@TRANSFORMS.register("doped")
@dataclass(frozen=True)
class SparseDoped(LayerTransform):
    """Replace each layer by a dense low-rank path and a sparse one (paper, section 3.1).

    `d = s Din Dout / (Din + Dout)`, rounded down and per group, with `Din = cin kh kw` for a
    convolution and `Dout = cout kh kw` for a transposed one; the density of θ repairs the rounding.
    Only θ is sparse. σ, on the sparse path, is BatchNorm and ReLU for convolutions, as in the
    paper, and ReLU for Linear layers, see `isoflop.transforms.nonlinearity.auto`;
    ``nonlinearity="none"`` is the linear ablation of table 7.
    """

    def rank(self, shape: LayerShape) -> int:
        """Return `d` of a layer, over all its groups."""
        size = shape.rows * shape.columns / (shape.rows + shape.columns)
        return shape.groups * math.floor(self.sparsity * size + 1e-9)

    def replacement(self, layer: nn.Module, shape: LayerShape) -> ReplacedLayer:
        """Return the two paths."""
        return DopedLayer(layer, self.rank(shape), self.nonlinearity)

    def weight_specs(self, path: str, layer: nn.Module, shape: LayerShape) -> dict[str, WeightSpec]:
        """Only θ is sparse."""
        return {
            "sparse.weight": WeightSpec(path, "sparse", 1.0 - self.sparsity),
            "low_rank.0.weight": WeightSpec(path, "dense", gain=1.0),
            "low_rank.1.weight": WeightSpec(path, "dense"),
        }
