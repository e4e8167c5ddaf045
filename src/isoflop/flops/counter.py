"""Counting the operations of a forward pass while it runs."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.errors import InputError
from isoflop.flops.fakes import RunningModules, grouped_product
from isoflop.flops.operations import (
    aten,
    factors_of,
    full_name,
    has_formula,
    is_joining,
    is_picking,
    keeps_stored,
    keeps_zeros,
    kind_of,
    macs_of,
    makes_zeros,
    packet_of,
    scales,
    written_by,
)
from isoflop.flops.origins import Origin, Origins, Uses, leaf_tensors, numel, without_repeats
from isoflop.flops.zeros import (
    UnknownZerosError,
    count,
    macs_without_zeros,
    nonzero_of,
    real,
    values_of,
)
from isoflop.masks import named_masks
from isoflop.surgery import is_fan_in_fan_out

_LOOK_UPS = ("aten::embedding", "aten::embedding_bag", "aten::embedding_bag_forward_only")
_MATRIX_PRODUCTS = (aten.mm, aten.bmm, aten.addmm, aten.baddbmm)


class Counter(TorchDispatchMode):
    """Counts every ATen operation of a forward pass and follows where its operands come from.

    Where weights are masked, it is followed which numbers are zero for that, through all that is done
    to the weights, so that the non-zeros of each factor are counted as they arrive at the product.

    Args:
        model: The model.
        fake: Its copy, made of fake tensors, which is to run.
        running: The modules of the copy that run.
        inputs: The tensors that it takes.

    Attributes:
        rows: Calls, MACs and MACs without masks by module, operation and weights.
        elementwise: Elements processed by operations that are no products.
        first: Names of the weights that the input meets first.
        recomputed: See `isoflop.flops.table.FlopTable`.
        uncounted: Likewise.
        uses: How often the numbers of each parameter multiply.
        shared: See `isoflop.flops.trace.Trace`.
    """

    supports_higher_order_operators = True

    def __init__(
        self, model: nn.Module, fake: nn.Module, running: RunningModules, inputs: list[Tensor]
    ) -> None:
        super().__init__()
        self.rows: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
        self.elementwise: dict[str, int] = {}
        self.first: set[str] = set()
        self.recomputed: set[str] = set()
        self.uncounted: dict[str, None] = {}
        self.shared: set[str] = set()
        self._running = running
        self._origins = Origins()
        self._time = 0
        self._numels = {name: p.numel() for name, p in model.named_parameters()}
        self.uses = Uses(self._numels)
        self._layers = {
            f"{path}.weight" if path else "weight"
            for path, module in model.named_modules()
            if isinstance(module, (nn.Linear, _ConvNd)) or is_fan_in_fan_out(module)
        }
        self._originals: dict[int, str] = {}
        self._homes: dict[int, str] = {}
        self._note_tensors(model, fake)
        for tensor in inputs:
            self._origins.set(tensor, Origin(active=True))

    def _note_tensors(self, model: nn.Module, fake: nn.Module) -> None:
        # By the tensors, as modules that share a weight need not all know its mask.
        masks = {id(m._parameters[attribute]): mask for _, m, attribute, mask in named_masks(model)}
        if any(mask.is_meta for mask in masks.values()):
            raise InputError("A masked model on the meta device has no countable non-zeros.")
        self._masks: dict[str, int] = {}
        for (name, parameter), original in zip(
            fake.named_parameters(), model.parameters(), strict=True
        ):
            mask = real(masks[id(original)]) if id(original) in masks else None
            origin = Origin(weights=(name,), masked=mask is not None)
            # What reaches the model not through its modules meets the original's parameters.
            for tensor in (original, parameter):
                self._origins.set(tensor, origin)
                self._homes[self._origins.key(tensor)] = name
                if mask is not None:
                    self._origins.set_nonzero(tensor, mask)
            if mask is not None:
                self._masks[name] = count(mask)
            self._originals[id(original)] = name
        if masks:
            for buffer, original in zip(fake.buffers(), model.buffers(), strict=True):
                numeric = original.is_floating_point() or original.is_complex()
                if not (numeric or original.is_meta or original.layout != torch.strided):
                    self._origins.set_values(buffer, real(original))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = packet_of(func)
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
        operands = leaf_tensors((args, kwargs))
        results = leaf_tensors(out)
        written = written_by(func, args, kwargs)
        self._time += 1
        self.shared.update(self._originals[id(t)] for t in operands if id(t) in self._originals)
        kind = kind_of(func)
        if kind == "product" and full_name(func) in _LOOK_UPS:
            # Rows are looked up; if each has a factor, these are products too.
            if macs := macs_of(packet, args, kwargs, out):
                table = operands[0]
                weights = self._origins.of(table).weights
                self._count(packet, [], [(table, Origin(weights, picked=True))], weights, macs)
            kind = "elementwise"
        if kind == "elementwise" and operands and results:
            work = max(numel(t) for t in (*operands, *results))
            name = str(packet).removeprefix("aten.")
            self.elementwise[name] = self.elementwise.get(name, 0) + work
        results += [t for t in written if all(t is not result for result in results)]
        if not results:
            return
        if kind == "unknown" and any(map(_is_numeric, operands)):
            self._not_counted(str(packet))
        self._note_stored(func, args, kwargs, operands, results)
        if kind == "product":
            origin = self._product(packet, args, kwargs, out)
        else:
            memory = set(map(self._origins.key, operands))
            if not written and all(self._origins.key(t) in memory for t in results):
                return  # views of what is known already
            origin = self._passed_on(func, kind, operands)
        changed = set(map(self._origins.key, written))
        if self._masks:
            origin = self._follow_values(func, kind, args, kwargs, results, written, origin)
        for tensor in results:
            self._origins.set(tensor, origin, written=self._origins.key(tensor) in changed)

    def _not_counted(self, what: str) -> None:
        self.uncounted[f"{what} in {self._running[-1] or 'the model'}"] = None

    def _product(self, packet: Any, args: Any, kwargs: Any, out: Any) -> Origin:
        """Count a product, and return the origin of its result."""
        factors = factors_of(packet, args, kwargs)
        dense = self._of_stored(packet, factors, macs_of(packet, args, kwargs, out))
        if not factors:
            self._count(packet, [], [], (), dense)
            operands = leaf_tensors((args, kwargs))
            return self._mixed([self._origins.of(t) for t in operands])
        known = [(t, self._origins.of(t)) for t in factors]
        origins = [origin for _, origin in known]
        fixed = [(t, o) for t, o in known if not o.active]
        if not any(o.weights for _, o in fixed):
            # Weights that were scaled by what depends on the input.
            scaled = [(t, o) for t, o in known if o.active and o.weights]
            fixed = scaled if len(scaled) == 1 else []
        active = [o for o in origins if o.active and all(o is not other for _, other in fixed)]
        # A learned input that has been through a layer is an activation to the next.
        plain = [(t, o) for t, o in fixed if o.weights and not o.recomputed]
        if not plain:
            self.recomputed.update(w for _, o in fixed if o.recomputed for w in o.weights)
        learned_input = False
        if len(plain) > 1 and (weight := self._weight_among(plain)) is not None:
            plain, learned_input = [weight], True
        elif len(plain) == 1:
            # What a layer makes of something constant is an activation, not another weight.
            names = plain[0][1].weights
            learned_input = self._layers.issuperset(names) and self._of_running(names)
        chosen = plain or fixed
        weights = tuple(dict.fromkeys(w for _, o in chosen for w in o.weights))
        self._count(packet, factors, chosen, weights, dense)
        latest = max(origins, key=lambda o: o.time, default=Origin())
        if active and weights:
            if not any(o.reached for o in active):
                self.first.update(weights)
            return Origin(active=True, reached=True, last=weights, time=self._time)
        if any(o.active for o in origins):
            reached = any(o.reached for o in origins)
            return Origin(active=True, reached=reached, last=latest.last, time=latest.time)
        if learned_input:
            return Origin(last=weights, time=self._time)
        return Origin(weights, recomputed=True, last=weights, time=self._time)

    def _mixed(self, origins: list[Origin]) -> Origin:
        """Return the origin of the result of a product that is no layer, in which zeros save nothing."""
        active = any(o.active for o in origins)
        latest = max(origins, key=lambda o: o.time, default=Origin())
        return Origin(
            weights=() if active else tuple(dict.fromkeys(w for o in origins for w in o.weights)),
            active=active,
            recomputed=True,
            reached=any(o.reached for o in origins),
            last=latest.last,
            time=latest.time,
        )

    def _of_stored(self, packet: Any, factors: list[Tensor], macs: int) -> int:
        """Return the MACs of a product of which a factor stores its non-zeros only."""
        sparse = [t for t in factors if t.layout != torch.strided]
        if not sparse:
            return macs
        stored = self._origins.stored(sparse[0])
        if len(sparse) > 1 or stored is None:
            self._not_counted(str(packet))
            return 0
        return macs * stored // max(1, numel(sparse[0]))

    def _note_stored(
        self, func: Any, args: Any, kwargs: Any, operands: list[Tensor], results: list[Tensor]
    ) -> None:
        """Note how many numbers the results store that store their non-zeros only."""
        for result in results:
            if result.layout == torch.strided:
                continue
            sparse = [t for t in operands if t.layout != torch.strided]
            stored = None
            if len(sparse) == 1 and keeps_stored(func):
                stored = self._origins.stored(sparse[0])
            elif not sparse:
                named = zip(func._schema.arguments, args, strict=False)
                values = ({a.name: v for a, v in named} | kwargs).get("values")
                stored = values.shape[0] if isinstance(values, Tensor) else None
            if stored is not None:
                self._origins.set_stored(result, stored)

    def _count(
        self,
        packet: Any,
        factors: list[Tensor],
        chosen: list[tuple[Tensor, Origin]],
        weights: tuple[str, ...],
        dense: int,
    ) -> None:
        """Add a product to the rows of the weights that it multiplies by."""
        operation = str(packet).removeprefix("aten.")
        macs = self._without_zeros(packet, factors, dense)
        shares = {weights: (macs, dense)}
        if len(chosen) == 1 and weights:
            tensor, origin = chosen[0]
            shares = self._shares(tensor, weights, macs, dense) or shares
            for name in weights:
                if (name,) not in shares:
                    self.uses.uneven.add(name)
                elif len(shares) == 1:
                    self.uses.add(
                        name,
                        tensor,
                        dense,
                        own_memory=self._homes.get(self._origins.key(tensor)) == name,
                        picked=origin.picked,
                    )
        for names, (own, own_dense) in shares.items():
            row = self.rows.setdefault((self._module_of(names), operation, names), [0, 0, 0])
            row[0] += 1
            row[1] += own
            row[2] += own_dense

    def _shares(
        self, tensor: Tensor, weights: tuple[str, ...], macs: int, dense: int
    ) -> dict[tuple[str, ...], tuple[int, int]] | None:
        """Return what each of several weights costs that were put beside each other, whole."""
        if len(weights) == 1:
            return None
        total = sum(self._numels[name] for name in weights)
        size = math.prod(without_repeats(tensor)[0])
        if size % total or self._origins.of(tensor).picked or dense % total:
            return None
        each = dense // total
        shares = {
            (name,): (
                each * self._masks.get(name, self._numels[name]),
                each * self._numels[name],
            )
            for name in weights
        }
        return shares if sum(own for own, _ in shares.values()) == macs else None

    def last_layers(self, tensor: Tensor) -> tuple[str, ...]:
        """Return the weights of the layers that `tensor` comes from directly."""
        return self._origins.of(tensor).last

    def _module_of(self, weights: tuple[str, ...]) -> str:
        """Return the module that runs; for gradients, the one whose weights they go through."""
        if weights and torch._C._current_graph_task_id() != -1:
            return weights[0].rpartition(".")[0]
        return self._running[-1]

    def _of_running(self, weights: tuple[str, ...]) -> bool:
        return all(name.rpartition(".")[0] == self._running[-1] for name in weights)

    def _weight_among(self, factors: list[tuple[Tensor, Origin]]) -> tuple[Tensor, Origin] | None:
        """Return which of several learned factors is the weight of a layer; the rest are its input."""
        layers = [(t, o) for t, o in factors if self._layers.issuperset(o.weights)]
        whole = [  # the others are repeated, for each sample
            (t, o) for t, o in factors if numel(t) == sum(self._numels[name] for name in o.weights)
        ]
        own = [(t, o) for t, o in factors if self._running[-1] and self._of_running(o.weights)]
        return next((found[0] for found in (layers, whole, own) if len(found) == 1), None)

    def _without_zeros(self, packet: Any, factors: list[Tensor], dense: int) -> int:
        """Return the MACs of a product in which masked weights are skipped."""
        masked = [t for t in factors if self._origins.of(t).masked]
        found = []
        for tensor in masked:
            lost = self._origins.of(tensor).lost
            if lost is not None:
                self._not_counted(f"{lost} of masked weights")
                return dense
            nonzero = self._origins.nonzero(tensor)
            if nonzero is not None:
                found.append(nonzero)
        return macs_without_zeros(found, dense, matrices=packet in _MATRIX_PRODUCTS)

    def _passed_on(self, func: Any, kind: str, operands: list[Tensor]) -> Origin:
        """Return the origin of the result of an operation that is no product."""
        sources = [(t, self._origins.of(t)) for t in operands]
        origins = [origin for _, origin in sources]
        active = [origin for origin in origins if origin.active]
        reached = any(o.reached for o in active)
        time = max((o.time for o in origins), default=-1)
        if is_joining(func):
            last = tuple(dict.fromkeys(name for o in origins for name in o.last))
        else:
            # Where paths join, the layer that ran last is the one that ends the path.
            last = max(origins, key=lambda o: o.time).last if origins else ()
        masked = any(o.masked for o in origins)
        if active and full_name(func) in _LOOK_UPS:
            weights = tuple(dict.fromkeys(w for o in origins if not o.active for w in o.weights))
            if weights:
                if not reached:
                    self.first.update(weights)
                return Origin(active=True, reached=True, last=weights, time=self._time)
        moves = kind in ("view", "move")
        made = self._made_of(func, moves, sources)
        return Origin(
            weights=tuple(dict.fromkeys(w for _, o in made for w in o.weights)),
            active=bool(active),
            recomputed=any(o.recomputed for _, o in made) or not (moves or scales(func)),
            picked=is_picking(func) or any(o.picked for _, o in made),
            reached=reached,
            last=last,
            time=time,
            masked=masked,
        )

    def _made_of(
        self, func: Any, moves: bool, sources: list[tuple[Tensor, Origin]]
    ) -> list[tuple[Tensor, Origin]]:
        """Return the operands whose weights the result of an operation is made of."""
        numeric = [(t, o) for t, o in sources if _is_numeric(t)] or sources
        active = [(t, o) for t, o in numeric if o.active]
        if active and moves:
            sources = [(t, o) for t, o in numeric if o.weights or o.active]
            return sources if all(o.weights for _, o in sources) else []
        if active:
            own = [(t, o) for t, o in numeric if o.weights]
            others = [t for t, o in active if not o.weights]
            alone = len(own) == 1 and (scales(func) or keeps_zeros(func))
            return own if alone and _has_dims_of_its_own(own[0][0], others) else []
        if not scales(func) or not numeric:
            return [(t, o) for t, o in numeric if o.weights]
        # A scale of a weight, such as the gain of a normalised one, is no weight by itself.
        largest = max(numel(t) for t, _ in numeric)
        found = [(t, o) for t, o in numeric if numel(t) == largest and o.weights]
        plain = [(t, o) for t, o in found if not o.recomputed]
        layers = [(t, o) for t, o in plain if self._layers.issuperset(o.weights)]
        return next((some for some in (plain, layers) if len(some) == 1), found)

    def _follow_values(
        self,
        func: Any,
        kind: str,
        args: Any,
        kwargs: Any,
        results: list[Tensor],
        written: list[Tensor],
        origin: Origin,
    ) -> Origin:
        """Note which numbers of results are zero because of masks, and the values of integers."""
        operands = leaf_tensors((args, kwargs))
        if kind != "product" and not any(map(_is_numeric, (*operands, *results))):
            found = values_of(func, args, kwargs, results, self._origins)
            for tensor, values in zip(results, found, strict=True):
                self._origins.set_values(tensor, values)
        else:
            for tensor in written:
                self._origins.set_values(tensor, None)
        if not origin.masked:
            for tensor in results:
                self._origins.set_blank(tensor, makes_zeros(func, args))
            return origin
        try:
            found = nonzero_of(func, args, kwargs, results, self._origins)
        except UnknownZerosError:
            lost = next(filter(None, (self._origins.of(t).lost for t in operands)), None)
            return dataclasses.replace(origin, lost=lost or str(packet_of(func)))
        if all(count(nonzero) == nonzero.numel() for nonzero in found) and not written:
            return dataclasses.replace(origin, masked=False)
        for tensor, nonzero in zip(results, found, strict=True):
            self._origins.set_nonzero(tensor, nonzero)
            self._origins.set_blank(tensor, False)
        return origin


def _is_numeric(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _has_dims_of_its_own(tensor: Tensor, others: list[Tensor]) -> bool:
    """Tell whether a tensor has a dimension along which all others are repeated."""
    sizes = [
        (size, [o.shape[-dim] if dim <= o.ndim else 1 for o in others])
        for dim, size in enumerate(reversed(tensor.shape), 1)
    ]
    return any(size > 1 and set(others) <= {1} for size, others in sizes)
