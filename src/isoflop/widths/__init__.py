"""Which dimensions of a model move together, and how to widen all of them.

Every parameter dimension that could be a width becomes a symbol, and the model runs once on fake
tensors of symbolic shapes. The shape checks of PyTorch's own operations are then the exact
equations that couple the dimensions: a residual addition makes two widths equal, a concatenation
makes one the sum of others, the input and the output pin theirs to constants. What stays free is
multiplied by the factor; everything else follows. No rule per model is needed.
"""

from isoflop.widths.check import check_unnamed, check_widened
from isoflop.widths.solve import Widths, solve_widths, widen

__all__ = ["Widths", "check_unnamed", "check_widened", "solve_widths", "widen"]
