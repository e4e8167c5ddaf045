"""Exact FLOP accounting of one forward pass, by module, operation and weight.

The convention is that of the paper: 1 MAC = 2 FLOPs, and what matrix-like operations cost
(convolution, linear, attention products) is the cost of the model. Element-wise work is reported
apart. The formulas per operation are PyTorch's own (`torch.utils.flop_counter`).
"""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from isoflop.errors import BudgetError, InputError, UncountedOperationWarning
from isoflop.flops.counter import Counter
from isoflop.flops.fakes import RunningModules, check_model, output_tensors, run_on_copy
from isoflop.surgery import ExampleInputs


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
        table = [header, *rows, total]
        widths = [max(len(row[i]) for row in table) for i in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        lines.append(f"element-wise operations (not in MACs): {self.elementwise:,}")
        lines += [f"not counted: {operation}" for operation in self.uncounted]
        return "\n".join(lines)


def profile(model: nn.Module, example_inputs: ExampleInputs) -> FlopTable:
    """Count the exact MACs of one forward pass, in evaluation mode, without running it.

    The pass runs on fake tensors: nothing is computed or allocated, the model is not touched, and
    models on the meta device work. Weights with a mask (see `isoflop.sparsify`) count by their
    number of non-zeros. What hooks of the model note meanwhile is put back.

    Args:
        model: Any module.
        example_inputs: A tensor, a shape such as ``(1, 3, 224, 224)``, a tuple of positional
            arguments or of their shapes, or a dict of keyword arguments. The count is for these
            inputs as they are, batch size included.

    Returns:
        The table of costs.

    Raises:
        InputError: The model cannot be run on these inputs.

    Warns:
        UncountedOperationWarning: The model runs operations of unknown cost; they are named.
    """
    table = trace(model, example_inputs).table
    if table.uncounted:
        warnings.warn(uncounted_message(table), UncountedOperationWarning, stacklevel=2)
    return table


def uncounted_message(table: FlopTable) -> str:
    """Return what to say of the operations of a table whose cost is not known."""
    names = "; ".join(table.uncounted[:3])
    more = f" and {len(table.uncounted) - 3} more" if len(table.uncounted) > 3 else ""
    return (
        f"The cost of these operations is not known, so that they are not counted: {names}{more}. "
        "Give a formula for the operation with `torch.utils.flop_counter.register_flop_formula`, or "
        "for its module a forward pass with `isoflop.register_widening_rule`."
    )


def network_ends(model: nn.Module, example_inputs: ExampleInputs) -> tuple[set[str], set[str]]:
    """Return the module paths of the first and of the last weighted layers.

    First are the layers that the input reaches before any other weighted layer (an embedding
    counts as one), last those that no other weighted layer follows on the way to an output. Both
    are found in the flow of the data, not by name or size (paper, appendix A.2).
    """
    found = trace(model, example_inputs)
    first, last = (
        {name.rpartition(".")[0] for name in names} for names in (found.first, found.last)
    )
    return first, last


@dataclass(frozen=True)
class Trace:
    """What one forward pass on fake tensors shows.

    Attributes:
        table: The costs.
        first: Names of the parameters of the first weighted layers, see `network_ends`.
        last: Names of the parameters of the last weighted layers.
        output_shapes: Shapes of all tensors that the model returns.
        shared: Names of parameters that the forward pass reached though not through the modules
            that were copied, such as by a global variable.
    """

    table: FlopTable
    first: frozenset[str]
    last: frozenset[str]
    output_shapes: tuple[tuple[int, ...], ...]
    shared: frozenset[str] = frozenset()


def trace(model: nn.Module, example_inputs: ExampleInputs) -> Trace:
    """Run one forward pass on fake tensors and return all that it shows; see `profile`.

    Raises:
        InputError: The model cannot be run on these inputs, or takes or returns no tensor.
    """
    check_model(model)

    def watch(fake: nn.Module, running: RunningModules, inputs: list[Tensor]) -> Counter:
        if not inputs:
            raise InputError(
                f"No tensor was found in the example inputs of {type(model).__name__}: pass the "
                "tensors that its forward pass takes, or their shapes."
            )
        return Counter(model, fake, running, inputs)

    output, counter = run_on_copy(model, example_inputs, watch)
    outputs = output_tensors(model, output)
    return Trace(
        table=_table(counter),
        first=frozenset(counter.first),
        last=frozenset(name for tensor in outputs for name in counter.last_layers(tensor)),
        output_shapes=tuple(tuple(tensor.shape) for tensor in outputs),
        shared=frozenset(counter.shared),
    )


def trace_for_budget(model: nn.Module, example_inputs: ExampleInputs) -> Trace:
    """Return `trace` of a model that is to be transformed, or is to meet a budget of FLOPs.

    Raises:
        InputError: The model cannot be run on these inputs.
        BudgetError: The cost of an operation is not known, or weights are used in a way that a copy
            of the model would not follow.
    """
    found = trace(model, example_inputs)
    if found.table.uncounted:
        raise BudgetError(uncounted_message(found.table))
    if found.shared:
        name = min(found.shared)
        raise BudgetError(
            f"The forward pass of {type(model).__name__} uses {name!r} not as a part of the model, but "
            "by a global variable or the like, which would lead a changed copy back to this model. "
            "Use it by an attribute, such as `self.layer`."
        )
    return found


def _table(counter: Counter) -> FlopTable:
    rows = [
        FlopRow(module, operation, weights, calls, macs, dense_macs)
        for (module, operation, weights), (calls, macs, dense_macs) in counter.rows.items()
    ]
    return FlopTable(
        tuple(rows),
        dict(counter.elementwise),
        frozenset(counter.recomputed),
        tuple(counter.uncounted),
        counter.uses.all_uneven(),
    )
