"""Exact FLOP accounting of one forward pass, by module, operation and weight.

The convention is that of the paper: 1 MAC = 2 FLOPs, and what matrix-like operations cost
(convolution, linear, attention products) is the cost of the model. Element-wise work is reported
apart. The formulas per operation are PyTorch's own (`torch.utils.flop_counter`).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoflop.errors import InputError
from isoflop.fakes import (
    RunningModules,
    fake_inputs,
    fake_like,
    fake_mode,
    follow_rules,
    grouped_product,
    plain_output,
    run_on_fakes,
    unfused,
)
from isoflop.masks import named_masks
from isoflop.surgery import ExampleInputs, copy_with_tensors, normalize_inputs

aten = torch.ops.aten


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
    """

    rows: tuple[FlopRow, ...]
    elementwise_ops: dict[str, int]
    recomputed: frozenset[str] = frozenset()

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
        return "\n".join(lines)


def profile(model: nn.Module, example_inputs: ExampleInputs) -> FlopTable:
    """Count the exact MACs of one forward pass, in evaluation mode, without running it.

    The pass runs on fake tensors: nothing is computed or allocated, the model is not touched, and
    models on the meta device work. Weights with a mask (see `isoflop.sparsify`) count by their
    number of non-zeros.

    Args:
        model: Any module.
        example_inputs: A tensor, a shape such as ``(1, 3, 224, 224)``, a tuple of positional
            arguments, or a dict of keyword arguments. The count is for these inputs as they are,
            batch size included.

    Returns:
        The table of costs.

    Raises:
        InputError: The model cannot be run on these inputs.
    """
    return trace(model, example_inputs).table


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
    """

    table: FlopTable
    first: frozenset[str]
    last: frozenset[str]
    output_shapes: tuple[tuple[int, ...], ...]


def trace(model: nn.Module, example_inputs: ExampleInputs) -> Trace:
    """Run one forward pass on fake tensors and return all that it shows; see `profile`."""
    args, kwargs = normalize_inputs(model, example_inputs)
    with torch.no_grad(), unfused(), fake_mode() as mode:
        fake = copy_with_tensors(model, lambda _module, _path, _name, tensor: fake_like(tensor))
        # Training first: by convention it clears what modules keep between evaluations.
        fake.train().eval()
        follow_rules(fake)
        args, kwargs = fake_inputs(mode, (args, kwargs))
        counter = _Counter(fake, [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)])
        with counter:
            output = run_on_fakes(fake, args, kwargs, counter.running)
    outputs = [t for t in tree_leaves(plain_output(output)) if isinstance(t, Tensor)]
    return Trace(
        table=counter.table(model),
        first=frozenset(counter.first),
        last=frozenset(name for tensor in outputs for name in counter.last_layers(tensor)),
        output_shapes=tuple(tuple(tensor.shape) for tensor in outputs),
    )


def _numel(tensor: Tensor) -> int:
    return math.prod(tensor.shape)


def _trilinear(args: Any) -> int:
    """MACs of a product of three tensors, the first of its two multiplications fused."""
    *tensors, expand1, expand2, expand3 = args[:6]
    shapes = []
    for tensor, expand in zip(tensors, (expand1, expand2, expand3), strict=True):
        shape = list(tensor.shape)
        for dim in sorted(expand):
            shape.insert(dim, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


# Products that torch.utils.flop_counter has no formula for, in MACs.
_MORE_FORMULAS: dict[Any, Any] = {
    aten.mv: lambda args, out: _numel(args[0]),
    aten.addmv: lambda args, out: _numel(args[1]),
    aten.dot: lambda args, out: _numel(args[0]),
    aten.vdot: lambda args, out: _numel(args[0]),
    aten.addbmm: lambda args, out: _numel(args[1]) * args[2].shape[-1],
    aten._trilinear: lambda args, out: _trilinear(args),
    aten._grouped_mm: lambda args, out: _numel(args[0]) * out.shape[-1],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda args, out: (
        flop_counter.sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape) // 2
    ),
}

# Operations that only move data.
_MOVES = {
    aten.clone,
    aten.copy_,
    aten.copy,
    aten._to_copy,
    aten.cat,
    aten.stack,
    aten.index,
    aten.gather,
    aten.embedding,
    aten.constant_pad_nd,
    aten.roll,
    aten.repeat,
    aten.index_select,
    aten.im2col,
    aten.channel_shuffle,
    aten._unsafe_view,
    aten.transpose_,
    aten.unsafe_split,
}


# Operations that keep zeros.
_SCALES = {aten.mul, aten.mul_, aten.div, aten.div_, aten.neg, aten.abs, aten.relu, aten.tanh}


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from.

    Attributes:
        weights: Parameters it is made of, if it does not depend on the model's input.
        active: Whether it depends on the model's input.
        recomputed: Whether zeros of its weights may have become other numbers.
        last: The weighted layers whose outputs it is made of without another one in between.
        time: When the latest of `last` ran.
    """

    weights: tuple[str, ...] = ()
    active: bool = False
    recomputed: bool = False
    last: tuple[str, ...] = ()
    time: int = -1


class _Counter(TorchDispatchMode):
    """Counts every ATen operation of a forward pass and follows where its operands come from."""

    def __init__(self, model: nn.Module, inputs: list[Tensor]) -> None:
        super().__init__()
        self._origins: dict[int, tuple[Tensor, _Origin]] = {}
        self._rows: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
        self.running = RunningModules(model)
        self._time = 0
        self.elementwise: dict[str, int] = {}
        self.first: set[str] = set()
        self.recomputed: set[str] = set()
        for name, parameter in model.named_parameters():
            self._set(parameter, _Origin(weights=(name,)))
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
        if packet not in flop_counter.flop_registry and packet not in _MORE_FORMULAS:
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
        origins = [self._get(t) for t in operands]
        active = [origin for origin in origins if origin.active]
        sources = list(zip(operands, origins, strict=True))
        if packet in (aten.mul, aten.div, aten.mul_, aten.div_) and not active:
            # A scale of a weight, such as the gain of a normalised one, is no weight by itself.
            largest = max(_numel(t) for t in operands)
            sources = [(t, o) for t, o in sources if _numel(t) == largest]
        weights = tuple(
            dict.fromkeys(w for _, origin in sources if not origin.active for w in origin.weights)
        )
        macs = self._macs(packet, args, kwargs, out)
        if macs is not None:
            # The first operand of addmm & co. and the third of convolution are biases.
            weights = self._weights_of_product(packet, args)
            key = (self.running[-1], str(packet).removeprefix("aten."), weights)
            row = self._rows.setdefault(key, [0, 0])
            row[0] += 1
            row[1] += macs
        elif not func.is_view and operands and packet not in _MOVES:
            name = str(packet).removeprefix("aten.")
            work = max(_numel(t) for t in (*operands, *results))
            self.elementwise[name] = self.elementwise.get(name, 0) + work

        if not active:
            keeps = func.is_view or packet in _MOVES or packet in _SCALES
            changed = any(origin.recomputed for _, origin in sources) or not keeps
            origin = _Origin(weights=weights, recomputed=changed)
        elif weights and (macs is not None or packet is aten.embedding):
            if not any(o.last for o in active):
                self.first.update(weights)
            origin = _Origin(active=True, last=weights, time=self._time)
        elif packet in (aten.cat, aten.stack):
            last = tuple(dict.fromkeys(name for o in active for name in o.last))
            origin = _Origin(active=True, last=last, time=max(o.time for o in active))
        else:
            # Where paths join, the layer that ran last is the one that ends the path.
            latest = max(active, key=lambda o: o.time)
            origin = _Origin(active=True, last=latest.last, time=latest.time)
        self._time += 1
        for tensor in results:
            self._set(tensor, origin)

    @staticmethod
    def _macs(packet: Any, args: Any, kwargs: Any, out: Any) -> int | None:
        if packet in _MORE_FORMULAS:
            return int(_MORE_FORMULAS[packet](args, out))
        if packet in flop_counter.flop_registry:
            return int(flop_counter.flop_registry[packet](*args, **kwargs, out_val=out)) // 2
        return None

    def _weights_of_product(self, packet: Any, args: Any) -> tuple[str, ...]:
        """Return the parameters among the factors of a product, biases left out."""
        name = str(packet)
        if any(kind in name for kind in ("convolution", "conv2d", "linear")):
            factors = args[:2]
        elif packet in (aten.addmm, aten.baddbmm, aten.addmv, aten.addbmm):
            factors = args[1:3]
        else:
            factors = [t for t in args if isinstance(t, Tensor)]
        weights = [o for o in map(self._get, factors) if not o.active]
        # A learned input that has been through a layer is an activation to the next.
        plain = [o for o in weights if not o.recomputed and o.weights]
        if not plain:
            self.recomputed.update(w for o in weights if o.recomputed for w in o.weights)
        return tuple(dict.fromkeys(w for o in plain or weights for w in o.weights))

    def last_layers(self, tensor: Tensor) -> tuple[str, ...]:
        """Return the weights of the layers that `tensor` comes from directly."""
        return self._get(tensor).last

    def table(self, model: nn.Module) -> FlopTable:
        """Return the counts, scaled by the densities of the masks of `model`."""
        parameters = dict(model.named_parameters())
        masks = {name: mask for name, _, _, mask in named_masks(model)}
        if any(mask.is_meta for mask in masks.values()):
            raise InputError("A masked model on the meta device has no countable non-zeros.")
        nnz = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        rows = []
        for (module, operation, weights), (calls, dense_macs) in self._rows.items():
            macs = dense_macs
            if len(weights) == 1 and weights[0] in nnz and weights[0] not in self.recomputed:
                (name,) = weights
                macs = dense_macs * nnz[name] // parameters[name].numel()
            rows.append(FlopRow(module, operation, weights, calls, macs, dense_macs))
        return FlopTable(tuple(rows), dict(self.elementwise), frozenset(self.recomputed))
