"""Exact FLOP accounting of one forward pass, by module, operation and weight.

The convention is that of the paper: 1 MAC = 2 FLOPs, and what matrix-like operations cost
(convolution, linear, attention products) is the cost of the model. Element-wise work is reported
apart. The formulas per operation are PyTorch's own (`torch.utils.flop_counter`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from isoflop.text import aligned


@dataclass(frozen=True)
class FlopRow:
    """What one operation of one module costs in a forward pass.

    Attributes:
        module: Path of the module whose forward ran the operation; empty for the root.
        operation: Name of the ATen operation, such as ``"convolution"``.
        parameters: Names of the parameters that are the operation's weights; empty for products
            of activations.
        calls: How often the operation ran.
        macs: Multiply-accumulates, weights masked to zero skipped.
        dense_macs: Multiply-accumulates, masks ignored.
    """

    module: str
    operation: str
    parameters: tuple[str, ...]
    calls: int
    macs: int
    dense_macs: int


@dataclass(frozen=True)
class FlopTable:
    """Exact cost of one forward pass of a model on given inputs.

    Attributes:
        rows: One row per module, operation and weight, in order of first execution.
        elementwise_ops: Element-wise, normalisation, pooling and reduction work by operation: the
            larger of the elements read (of one operand) and written. Not part of `macs`.
        recomputed: Parameters that are changed before they multiply in such a way that their zeros
            do not stay zeros, as by weight standardisation.
        uncounted: Operations that are neither element-wise nor of a known cost, as ``"NAME in
            MODULE"``; what they cost is not part of `macs`.
        uneven: Parameters of which some weights multiply more often than others.
    """

    rows: tuple[FlopRow, ...]
    elementwise_ops: dict[str, int]
    recomputed: frozenset[str] = frozenset()
    uncounted: tuple[str, ...] = ()
    uneven: frozenset[str] = frozenset()

    @property
    def macs(self) -> int:
        """MACs of the forward pass, weights masked to zero skipped."""
        return sum(row.macs for row in self.rows)

    @property
    def dense_macs(self) -> int:
        """MACs of the forward pass, masks ignored."""
        return sum(row.dense_macs for row in self.rows)

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass; 1 MAC = 2 FLOPs."""
        return 2 * self.macs

    @property
    def training_flops(self) -> int:
        """FLOPs of a forward and backward pass: three times the forward pass (paper, figure 1)."""
        return 3 * self.flops

    @property
    def elementwise(self) -> int:
        """Elements processed by operations that are no matrix products."""
        return sum(self.elementwise_ops.values())

    def by_parameter(self) -> dict[str, int]:
        """Return `dense_macs` by the one parameter that causes them, over all its uses."""
        total: dict[str, int] = {}
        for row in self.rows:
            if len(row.parameters) == 1:
                (name,) = row.parameters
                total[name] = total.get(name, 0) + row.dense_macs
        return total

    def grouped(self) -> set[str]:
        """Return the parameters that hold the weights of several experts.

        Every row of the input meets one expert only, so that the MACs need not be a multiple of the
        number of weights.
        """
        return {
            name for row in self.rows if row.operation == "_grouped_mm" for name in row.parameters
        }

    def prices(self, numels: Mapping[str, int]) -> dict[str, int | Fraction]:
        """Return the MACs that each weight of a parameter causes, by the parameter's name.

        Left out are parameters that are `uneven`, such as tables of relative positions, and those
        that are `recomputed`, in which a zero saves nothing.

        Args:
            numels: Number of weights of every parameter.
        """
        grouped = self.grouped()
        prices = {}
        for name, macs in self.by_parameter().items():
            price = Fraction(macs, numels[name])
            if name in self.recomputed | self.uneven:
                continue
            if price.denominator == 1:
                prices[name] = price.numerator
            elif name in grouped:
                prices[name] = price
        return prices

    def by_module(self) -> dict[str, int]:
        """Return `macs` by module path, children included; the root is ``""``."""
        total: dict[str, int] = {"": 0}
        for row in self.rows:
            parts = row.module.split(".") if row.module else []
            for depth in range(len(parts) + 1):
                path = ".".join(parts[:depth])
                total[path] = total.get(path, 0) + row.macs
        return total

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain data."""
        return {
            "macs": self.macs,
            "dense_macs": self.dense_macs,
            "flops": self.flops,
            "training_flops": self.training_flops,
            "elementwise": self.elementwise,
            "elementwise_ops": dict(self.elementwise_ops),
            "uncounted": list(self.uncounted),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        header = ("module", "operation", "weight", "calls", "MACs", "dense MACs")
        rows = [
            (
                row.module or "(root)",
                row.operation,
                ", ".join(row.parameters) or "-",
                str(row.calls),
                f"{row.macs:,}",
                f"{row.dense_macs:,}",
            )
            for row in self.rows
        ]
        total = ("total", "", "", "", f"{self.macs:,}", f"{self.dense_macs:,}")
        lines = aligned([header, *rows, total], left=range(3))
        lines.append(f"element-wise operations (not in MACs): {self.elementwise:,}")
        lines += [f"not counted: {operation}" for operation in self.uncounted]
        return "\n".join(lines)
