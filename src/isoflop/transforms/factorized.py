"""Sparse Factorized: two sparse factors with a non-linearity between them."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isoflop.transforms.base import TRANSFORMS, LayerTransform, WeightSpec
from isoflop.transforms.layers import LayerShape, factors, through_factors
from isoflop.transforms.nonlinearity import NONLINEARITIES
from isoflop.transforms.replacement import ReplacedLayer


class FactorizedLayer(ReplacedLayer):
    """`Vᵀ σ(Uᵀ z)`, plus the bias of the layer that it replaces; see `factors`.

    Args:
        layer: The dense layer.
        rank: Channels between U and V, over all groups.
        nonlinearity: Name of σ.
    """

    def __init__(self, layer: nn.Module, rank: int, nonlinearity: str) -> None:
        super().__init__(layer)
        self.down, self.up = factors(layer, rank)
        self.nonlinearity = NONLINEARITIES.get(nonlinearity)(layer, rank)

    def first_layer(self) -> nn.Module:
        """Return the first factor."""
        return self.down

    def compute(self, input: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        """Apply one factor after the other."""
        product = through_factors(self.down, self.nonlinearity, self.up, input, *args, **kwargs)
        return self.add_bias(product)


@TRANSFORMS.register("factorized")
@dataclass(frozen=True)
class SparseFactorized(LayerTransform):
    """Replace each layer by two sparse factors (paper, section 3.1 and appendix A.1).

    `d = Din Dout / ((Din + Dout)(1 - s))`, rounded up and per group, with `Din = cin kh kw` for a
    convolution and `Dout = cout kh kw` for a transposed one; the density repairs the rounding. σ,
    between the factors, is BatchNorm and ReLU for convolutions, as in the paper, and ReLU for
    Linear layers, see `isoflop.transforms.nonlinearity.auto`; ``nonlinearity="none"`` is the linear
    ablation of table 7.
    """

    def rank(self, shape: LayerShape) -> int:
        """Return `d` of a layer, over all its groups."""
        size = shape.rows * shape.columns / (shape.rows + shape.columns)
        return shape.groups * math.ceil(size / (1.0 - self.sparsity) - 1e-9)

    def replacement(self, layer: nn.Module, shape: LayerShape) -> ReplacedLayer:
        """Return the two factors."""
        return FactorizedLayer(layer, self.rank(shape), self.nonlinearity)

    def weight_specs(self, path: str, layer: nn.Module, shape: LayerShape) -> dict[str, WeightSpec]:
        """Both factors are sparse; the gain of the first pays for a non-linearity after it."""
        linear = self.nonlinearity == "none"
        density = 1.0 - self.sparsity
        return {
            "down.weight": WeightSpec(
                path, "sparse", density, gain=1.0 if linear else math.sqrt(2.0)
            ),
            "up.weight": WeightSpec(path, "sparse", density),
        }
