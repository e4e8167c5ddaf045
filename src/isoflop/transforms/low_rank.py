"""Low rank: the structured baseline of table 10, a wider network of dense low-rank factors."""

import math
from dataclasses import dataclass, field

from torch import nn

from isoflop.errors import IsoflopError
from isoflop.transforms.base import TRANSFORMS, LayerTransform, Source, WeightSpec, widened
from isoflop.transforms.factorized import FactorizedLayer
from isoflop.transforms.layers import LayerShape
from isoflop.transforms.replacement import ReplacedLayer


@TRANSFORMS.register("low_rank")
@dataclass(frozen=True)
class LowRank(LayerTransform):
    """Widen the network and factorise each layer densely (paper, table 10).

    With widths times `k`, the rank that costs what the dense layer did is
    `d = Din Dout / (k (Din + Dout))`, rounded up; the few weights by which the rounding overshoots
    are zero, so that the FLOPs match as exactly as those of the sparse transforms. The paper
    prints `k` in the numerator, which would not be Iso-FLOP; its released code divides. σ between
    the factors is that of `SparseFactorized`.

    Attributes:
        sparsity: The sparsity of the Sparse Wide network to compare with, which has the same
            widths: `k = sqrt(1 / (1 - sparsity))`.
        width: `k` itself, instead.
    """

    sparsity: float = 0.0
    width: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width is None:
            return
        number = isinstance(self.width, (int, float)) and not isinstance(self.width, bool)
        if not (number and math.isfinite(self.width) and self.width >= 1.0):
            raise IsoflopError(f"width must be a finite factor of at least 1, not {self.width!r}.")
        if self.sparsity:
            raise IsoflopError("Give LowRank a width or a sparsity to derive it from, not both.")

    @property
    def factor(self) -> float:
        """By how much the widths grow."""
        return self.width if self.width is not None else math.sqrt(1.0 / (1.0 - self.sparsity))

    def resized(self, source: Source) -> nn.Module:
        """Return the widened model."""
        return widened(source, self.factor)

    def replacement(self, layer: nn.Module, shape: LayerShape) -> ReplacedLayer:
        """Return the two factors, of the rank that the dense layer's cost allows."""
        wide = LayerShape.of(layer)
        rank = math.ceil(shape.rows * shape.columns / (wide.rows + wide.columns))
        return FactorizedLayer(layer, shape.groups * rank, self.nonlinearity)

    def weight_specs(self, path: str, layer: nn.Module, shape: LayerShape) -> dict[str, WeightSpec]:
        """Both factors are full but for what repairs the rounding of the rank."""
        linear = self.nonlinearity == "none"
        return {
            "down.weight": WeightSpec(path, "sparse", gain=1.0 if linear else math.sqrt(2.0)),
            "up.weight": WeightSpec(path, "sparse"),
        }
