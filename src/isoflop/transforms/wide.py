"""Sparse Wide: every hidden width times `sqrt(1 / (1 - s))`, a fraction `s` of the weights zero."""

import math
from dataclasses import dataclass, field

from torch import nn

from isoflop.errors import IsoflopError
from isoflop.transforms.base import TRANSFORMS, Source, Transform, WeightSpec, widened
from isoflop.transforms.layers import LayerShape, is_replaceable


@TRANSFORMS.register("wide")
@dataclass(frozen=True)
class SparseWide(Transform):
    """Widen the whole network by one factor and make it sparse (paper, section 3.1).

    The factor is `k = sqrt(1 / (1 - s))`, the same everywhere so that widths match; a weight of
    shape `(k Dout, k Din)` with `s` of it zero costs what the dense one did. A depthwise
    convolution has a single input channel, so its cost grows by `k` only, and its own sparsity is
    `1 - sqrt(1 - s)` (appendix A.1.1). Excluded layers and the ends widen too, but stay dense.

    Attributes:
        multiple_of: Round each free width to a multiple of this; the sparsities repair the rest.
    """

    multiple_of: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.multiple_of, int) or self.multiple_of < 1:
            raise IsoflopError(f"multiple_of must be a positive integer, not {self.multiple_of!r}.")

    def build(self, source: Source) -> tuple[nn.Module, dict[str, WeightSpec]]:
        """Widen the model and mark its weights sparse."""
        factor = math.sqrt(1.0 / (1.0 - self.sparsity))
        model = widened(source, factor, multiple_of=self.multiple_of)
        modules = dict(source.model.named_modules())
        specs = {}
        for name in source.weights:
            path, _, attribute = name.rpartition(".")
            layer = modules[path]
            plain = attribute == "weight" and is_replaceable(layer)
            depthwise = plain and LayerShape.of(layer).depthwise
            density = math.sqrt(1.0 - self.sparsity) if depthwise else 1.0 - self.sparsity
            specs[name] = WeightSpec(path, "sparse", density)
        return model, specs
