"""Exact FLOP accounting of one forward pass, by module, operation and weight.

The convention is that of the paper: 1 MAC = 2 FLOPs, and what matrix-like operations cost
(convolution, linear, attention products) is the cost of the model. Element-wise work is reported
apart. The formulas per operation are PyTorch's own (`torch.utils.flop_counter`).
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from isoflop.copies import copy_with_tensors
from isoflop.errors import BudgetError, InputError, UncountedOperationWarning
from isoflop.fakes import (
    NeedsGradientsError,
    RunningModules,
    check_model,
    fake_inputs,
    fake_like,
    fake_mode,
    follow_rules,
    grouped_product,
    output_tensors,
    run_on_fakes,
    unfused,
)
from isoflop.masks import named_masks
from isoflop.nests import tensors_in
from isoflop.operations import (
    aten,
    has_formula,
    is_joining,
    keeps_zeros,
    kind_of,
    macs_of,
    scales,
)
from isoflop.surgery import ExampleInputs, normalize_inputs


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
    """

    rows: tuple[FlopRow, ...]
    elementwise_ops: dict[str, int]
    recomputed: frozenset[str] = frozenset()
    uncounted: tuple[str, ...] = ()

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

        Left out are parameters of which only a part multiplies: they are tables, such as those of
        relative positions. So are those that are `recomputed`, in which a zero saves nothing.

        Args:
            numels: Number of weights of every parameter.
        """
        grouped = self.grouped()
        prices = {}
        for name, macs in self.by_parameter().items():
            price = Fraction(macs, numels[name])
            if name in self.recomputed:
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
    number of non-zeros. Hooks of the model run on copies of what they refer to.

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
    try:
        return _trace(model, example_inputs, gradients=False)
    except NeedsGradientsError:
        return _trace(model, example_inputs, gradients=True)


def _trace(model: nn.Module, example_inputs: ExampleInputs, *, gradients: bool) -> Trace:
    args, kwargs = normalize_inputs(model, example_inputs)
    with fake_mode() as mode:
        fake = copy_with_tensors(
            model, lambda _module, _path, _name, tensor: fake_like(tensor), share_others=True
        )
        follow_rules(fake)
        return _run(model, fake, *fake_inputs(mode, (args, kwargs)), gradients=gradients)


def _run(model: nn.Module, copied: nn.Module, args: Any, kwargs: Any, *, gradients: bool) -> Trace:
    """Count one forward pass of `copied`, a copy of `model` with other tensors."""
    # Training first: by convention it clears what modules keep between evaluations.
    copied.train().eval()
    inputs = tensors_in((args, kwargs))
    if not inputs:
        raise InputError(
            f"No tensor was found in the example inputs of {type(model).__name__}: pass the tensors "
            "that its forward pass takes, or their shapes."
        )
    with unfused():
        counter = _Counter(model, copied, inputs)
        with counter:
            output = run_on_fakes(copied, args, kwargs, counter.running, gradients=gradients)
        outputs = output_tensors(model, output)
    return Trace(
        table=counter.table(),
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


def _numel(tensor: Tensor) -> int:
    return math.prod(tensor.shape)


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from.

    Attributes:
        weights: Parameters it is made of, if it does not depend on the model's input.
        active: Whether it depends on the model's input.
        recomputed: Whether zeros of its weights may have become other numbers.
        reached: Whether a weighted layer lies between the model's input and this.
        last: The weighted layers whose outputs it is made of without another one in between.
        time: When the latest of `last` ran.
        values: Of an integer or boolean buffer and its views the values; of what is made of masked
            weights where they are not zero, as booleans; else None.
        masked: Whether there are masked weights in it.
    """

    weights: tuple[str, ...] = ()
    active: bool = False
    recomputed: bool = False
    reached: bool = False
    last: tuple[str, ...] = ()
    time: int = -1
    values: Tensor | None = None
    masked: bool = False


class _Counter(TorchDispatchMode):
    """Counts every ATen operation of a forward pass and follows where its operands come from.

    Where weights are masked, their masks go through the views, joins and scales that the weights go
    through, so that the non-zeros of each factor are counted as they arrive at the product.
    """

    def __init__(self, model: nn.Module, fake: nn.Module, inputs: list[Tensor]) -> None:
        super().__init__()
        self._origins: dict[int, tuple[Tensor, _Origin]] = {}
        self._rows: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
        self.running = RunningModules(fake)
        self._time = 0
        self.elementwise: dict[str, int] = {}
        self.first: set[str] = set()
        self.recomputed: set[str] = set()
        self.uncounted: dict[str, None] = {}
        self.shared: set[str] = set()
        masks = {name: mask for name, _, _, mask in named_masks(model)}
        if any(mask.is_meta for mask in masks.values()):
            raise InputError("A masked model on the meta device has no countable non-zeros.")
        self._numels = {name: p.numel() for name, p in model.named_parameters()}
        self._originals: dict[int, str] = {}
        for (name, parameter), original in zip(
            fake.named_parameters(), model.parameters(), strict=True
        ):
            values = _real(masks[name]) if name in masks else None
            origin = _Origin(weights=(name,), values=values, masked=name in masks)
            self._set(parameter, origin)
            # What reaches the model not through its modules meets the original's parameters.
            self._set(original, origin)
            self._originals[id(original)] = name
        if masks:
            for buffer, original in zip(fake.buffers(), model.buffers(), strict=True):
                if not (original.is_meta or _is_numeric(original)):
                    self._set(buffer, _Origin(values=_real(original)))
        for tensor in inputs:
            self._set(tensor, _Origin(active=True))

    def _set(self, tensor: Tensor, origin: _Origin) -> None:
        # The tensor is kept, so that its id stays its own.
        self._origins[id(tensor)] = (tensor, origin)

    def _get(self, tensor: Tensor) -> _Origin:
        return self._origins[id(tensor)][1] if id(tensor) in self._origins else _Origin()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", func)
        if not has_formula(packet):
            decompose = getattr(func, "decompose", None)
            if decompose is not None and func is not torch.ops.prim.device.default:
                with self:
                    out = decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
        # PyTorch knows the shape of this one for half precision only.
        run = grouped_product if packet is aten._grouped_mm else func
        out = run(*args, **kwargs)
        self._record(func, packet, args, kwargs, out)
        return out

    def _record(self, func: Any, packet: Any, args: Any, kwargs: Any, out: Any) -> None:
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not results:
            return
        self.shared.update(self._originals[id(t)] for t in operands if id(t) in self._originals)
        kind = kind_of(func)
        if kind == "product":
            origin, values = self._product(packet, args, kwargs, out), None
        else:
            if kind == "elementwise" and operands:
                work = max(_numel(t) for t in (*operands, *results))
                name = str(packet).removeprefix("aten.")
                self.elementwise[name] = self.elementwise.get(name, 0) + work
            elif kind == "unknown" and any(_is_numeric(t) for t in operands):
                self._not_counted(str(packet))
            origin = self._passed_on(func, kind, operands)
            values = None if origin.active else self._values(func, kind, args, kwargs, operands)
            if origin.masked and values is None and kind in ("view", "move"):
                self._not_counted(f"{packet} of masked weights")
        self._time += 1
        for number, tensor in enumerate(results):
            known = values[number] if values is not None else None
            self._set(tensor, dataclasses.replace(origin, values=known))

    def _not_counted(self, what: str) -> None:
        self.uncounted[f"{what} in {self.running[-1] or 'the model'}"] = None

    def _product(self, packet: Any, args: Any, kwargs: Any, out: Any) -> _Origin:
        """Count a product, and return the origin of its result."""
        dense = macs_of(packet, args, kwargs, out)
        factors = _factors(packet, args, kwargs)
        origins = [self._get(t) for t in factors]
        active = [o for o in origins if o.active]
        fixed = [(t, o) for t, o in zip(factors, origins, strict=True) if not o.active]
        # A learned input that has been through a layer is an activation to the next.
        plain = [(t, o) for t, o in fixed if o.weights and not o.recomputed]
        if not plain:
            self.recomputed.update(w for _, o in fixed if o.recomputed for w in o.weights)
        learned_input = False
        if len(plain) > 1 and (weight := self._weight_among(plain)) is not None:
            plain, learned_input = [weight], True
        weights = tuple(dict.fromkeys(w for _, o in plain or fixed for w in o.weights))
        row = self._rows.setdefault(
            (self._place(weights), str(packet).removeprefix("aten."), weights), [0, 0, 0]
        )
        row[0] += 1
        row[1] += self._without_zeros(packet, factors, dense)
        row[2] += dense
        if active and weights:
            if not any(o.reached for o in active):
                self.first.update(weights)
            return _Origin(active=True, reached=True, last=weights, time=self._time)
        latest = max(origins, key=lambda o: o.time)
        if active:
            reached = any(o.reached for o in active)
            return _Origin(active=True, reached=reached, last=latest.last, time=latest.time)
        if learned_input:
            return _Origin(last=weights, time=self._time)
        masked = any(o.masked for o in origins)
        return _Origin(weights, recomputed=True, last=weights, time=self._time, masked=masked)

    def _place(self, weights: tuple[str, ...]) -> str:
        """Return the path of the module that a product with these weights belongs to."""
        owners = {name.rpartition(".")[0] for name in weights}
        node: Any = torch._C._current_autograd_node()  # pyright: ignore[reportAttributeAccessIssue]
        # Gradients that a forward pass takes are computed outside of all modules.
        return owners.pop() if node is not None and len(owners) == 1 else self.running[-1]

    def _weight_among(self, factors: list[tuple[Tensor, _Origin]]) -> tuple[Tensor, _Origin] | None:
        """Return which of several learned factors is the weight of a layer; the rest are its input."""
        whole = [
            (tensor, origin)
            for tensor, origin in factors
            if _numel(tensor) == sum(self._numels[name] for name in origin.weights)
        ]
        if len(whole) == 1:  # the others are repeated, for each sample
            return whole[0]
        path = self.running[-1]
        own = [(t, o) for t, o in factors if all(n.rpartition(".")[0] == path for n in o.weights)]
        return own[0] if path and len(own) == 1 else None

    def _without_zeros(self, packet: Any, factors: list[Tensor], dense: int) -> int:
        """Return the MACs of a product in which masked weights are skipped."""
        masked = [
            origin.values
            for origin in map(self._get, factors)
            if origin.masked and origin.values is not None
        ]
        with unset_fake_temporarily():
            if len(masked) == 2 and packet in (aten.mm, aten.bmm):
                one, two = (values.double() for values in masked)
                return int((one @ two).sum())
            for values in masked:
                dense = dense * int(values.count_nonzero()) // values.numel()
        return dense

    def _passed_on(self, func: Any, kind: str, operands: list[Tensor]) -> _Origin:
        """Return the origin of the result of an operation that is no product."""
        sources = [(t, self._get(t)) for t in operands]
        origins = [origin for _, origin in sources]
        active = [origin for origin in origins if origin.active]
        if scales(func) and not active:
            # A scale of a weight, such as the gain of a normalised one, is no weight by itself.
            largest = max(_numel(t) for t in operands)
            sources = [(t, o) for t, o in sources if _numel(t) == largest]
        weights = tuple(dict.fromkeys(w for _, o in sources if not o.active for w in o.weights))
        reached = any(o.reached for o in active)
        if active and weights and func._overloadpacket is aten.embedding:
            if not reached:
                self.first.update(weights)
            return _Origin(active=True, reached=True, last=weights, time=self._time)
        time = max((o.time for o in origins), default=-1)
        if is_joining(func):
            last = tuple(dict.fromkeys(name for o in origins for name in o.last))
        else:
            # Where paths join, the layer that ran last is the one that ends the path.
            last = max(origins, key=lambda o: o.time).last if origins else ()
        if active:
            return _Origin(active=True, reached=reached, last=last, time=time)
        keeps = kind in ("view", "move") or scales(func)
        return _Origin(
            weights,
            recomputed=any(o.recomputed for _, o in sources) or not keeps,
            last=last,
            time=time,
            masked=any(o.masked for o in origins),
        )

    def _values(
        self, func: Any, kind: str, args: Any, kwargs: Any, operands: list[Tensor]
    ) -> list[Tensor] | None:
        """Return the values of results that do not depend on the input; None if they do not matter.

        They are not known either where positions of weights come out of a computation.
        """
        origins = [self._get(t) for t in operands]
        masked = any(o.masked for o in origins)
        if not masked and all(o.values is None for o in origins):
            return None
        try:
            with unset_fake_temporarily(), torch.no_grad():
                if kind in ("view", "move"):
                    args, kwargs = tree_map_only(Tensor, self._stand_in, (args, kwargs))
                    return tensors_in(func(*args, **kwargs))
                if not masked:
                    return None
                # Zeros of other numbers than masked weights are not for us to know.
                found = [
                    self._stand_in(t) if self._get(t).masked else torch.ones(tuple(t.shape)).bool()
                    for t in args
                    if isinstance(t, Tensor)
                ]
                together = torch.stack(torch.broadcast_tensors(*found))
                name = func._overloadpacket.__name__.strip("_")
                if name == "mul":
                    return [together.all(0)]
                if name in ("add", "sub"):
                    return [together.any(0)]
                return [together[0]] if keeps_zeros(func) else None
        except Exception:  # above all, because positions are not known
            return None

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """Return the values of a tensor; of numbers, whether they are zero by a mask."""
        values = self._get(tensor).values
        if values is not None:
            return values
        if _is_numeric(tensor):
            return torch.ones((), dtype=torch.bool).expand(tuple(tensor.shape))
        known = tensor.constant if isinstance(tensor, FakeTensor) else tensor
        if known is None:
            raise LookupError("values that are not known")
        return known

    def last_layers(self, tensor: Tensor) -> tuple[str, ...]:
        """Return the weights of the layers that `tensor` comes from directly."""
        return self._get(tensor).last

    def table(self) -> FlopTable:
        """Return the counts."""
        rows = [
            FlopRow(module, operation, weights, calls, macs, dense_macs)
            for (module, operation, weights), (calls, macs, dense_macs) in self._rows.items()
        ]
        return FlopTable(
            tuple(rows),
            dict(self.elementwise),
            frozenset(self.recomputed),
            tuple(self.uncounted),
        )


def _real(tensor: Tensor) -> Tensor:
    """Return the values of a tensor, on the CPU, within a fake mode."""
    with unset_fake_temporarily():
        return tensor.detach().cpu()


def _is_numeric(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _factors(packet: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the factors of a product, biases left out."""
    name = str(packet)
    if packet is aten.convolution_backward and not args[-1][1]:
        found = (args[0], args[2])  # the gradient of the input alone
    elif any(kind in name for kind in ("convolution", "conv2d", "linear", "conv_tbc")):
        found = args[:2]
    elif packet in (aten.addmm, aten.baddbmm, aten.addmv, aten.addbmm, aten._addmm_activation):
        found = args[1:3]
    else:
        found = (*args, *kwargs.values())
    return [t for t in found if isinstance(t, Tensor)]
