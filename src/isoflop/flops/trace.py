"""One forward pass on fake tensors, and all that it shows."""

import warnings
from dataclasses import dataclass

from torch import Tensor, nn

from isoflop.errors import BudgetError, InputError, UncountedOperationWarning
from isoflop.flops.counter import Counter
from isoflop.flops.fakes import RunningModules, check_model, output_tensors, run_on_copy
from isoflop.flops.table import FlopRow, FlopTable
from isoflop.surgery import ExampleInputs


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


def uncounted_message(table: FlopTable) -> str:
    """Return what to say of the operations of a table whose cost is not known."""
    names = "; ".join(table.uncounted[:3])
    more = f" and {len(table.uncounted) - 3} more" if len(table.uncounted) > 3 else ""
    return (
        f"The cost of these operations is not known, so that they are not counted: {names}{more}. "
        "Give a formula for the operation with `torch.utils.flop_counter.register_flop_formula`, or "
        "for its module a forward pass with `isoflop.register_widening_rule`."
    )


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
