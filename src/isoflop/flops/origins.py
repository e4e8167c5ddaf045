"""Where the tensors of a trace come from, by the memory that they lie in."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Attributes:
        weights: Parameters it is made of: if it does not depend on the model's input, or if they
            were only scaled by, or chosen by, what does.
        active: Whether it depends on the model's input.
        recomputed: Whether zeros of its weights may have become other numbers.
        picked: Whether it may hold some numbers of its weights several times and others not at all.
        reached: Whether a weighted layer lies between the model's input and this.
        last: The weighted layers whose outputs it is made of without another one in between.
        time: When the latest of `last` ran.
        masked: Whether some of its numbers are zero because of masks.
        lost: The operation since which it is not known which ones.
    """

    weights: tuple[str, ...] = ()
    active: bool = False
    recomputed: bool = False
    picked: bool = False
    reached: bool = False
    last: tuple[str, ...] = ()
    time: int = -1
    masked: bool = False
    lost: str | None = None


_NOWHERE = Origin()


class Origins:
    """What is known of every tensor of a trace.

    Views share the memory of a tensor, so nothing that is done to one is missed in another. For
    memory in which masked weights lie, it is known which numbers are not zero; for integers and
    booleans, where possible, the values.
    """

    def __init__(self) -> None:
        self._origins: dict[int, Origin] = {}
        # What a key stands for is kept, so that no other takes its place.
        self._kept: dict[int, object] = {}
        self._nonzero: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._blank: set[int] = set()
        self._stored: dict[int, int] = {}

    def key(self, tensor: Tensor) -> int:
        """Return what stands for the memory of a tensor."""
        if tensor.layout != torch.strided:
            self._kept[id(tensor)] = tensor
            return id(tensor)
        storage = tensor.untyped_storage()
        self._kept.setdefault(storage._cdata, storage)
        return storage._cdata

    def of(self, tensor: Tensor) -> Origin:
        """Return where a tensor comes from."""
        return self._origins.get(self.key(tensor), _NOWHERE)

    def set(self, tensor: Tensor, origin: Origin, *, written: bool = False) -> None:
        """Note where a new tensor comes from, or what was written to one."""
        key = self.key(tensor)
        if written and key in self._origins:
            origin = _joined(self._origins[key], origin)
        self._origins[key] = origin
        if not origin.masked:
            self._nonzero.pop(key, None)

    def stored(self, tensor: Tensor) -> int | None:
        """Return how many numbers a sparse tensor stores; None if that is not known."""
        if isinstance(tensor, FakeTensor):
            return self._stored.get(self.key(tensor))
        with unset_fake_temporarily():
            return tensor._nnz()

    def set_stored(self, tensor: Tensor, count: int) -> None:
        """Note how many numbers a sparse tensor stores."""
        self._stored[self.key(tensor)] = count

    def set_blank(self, tensor: Tensor, blank: bool) -> None:
        """Note whether a tensor consists of zeros."""
        (self._blank.add if blank else self._blank.discard)(self.key(tensor))

    def nonzero(self, tensor: Tensor) -> Tensor | None:
        """Return which numbers of a tensor are not zero; None if all may be other than zero."""
        key = self.key(tensor)
        if key in self._nonzero:
            return _view(self._nonzero[key], tensor)
        if key not in self._blank:
            return None
        with unset_fake_temporarily():
            return torch.zeros(tuple(tensor.shape), dtype=torch.bool)

    def set_nonzero(self, tensor: Tensor, nonzero: Tensor) -> None:
        """Note which numbers of a tensor are not zero."""
        _put(self._nonzero, self.key(tensor), tensor, nonzero, self.key(tensor) not in self._blank)

    def values(self, tensor: Tensor) -> Tensor | None:
        """Return the values of integers and booleans; None if they are not known."""
        key = self.key(tensor)
        if key in self._values:
            return _view(self._values[key], tensor)
        return tensor.constant if isinstance(tensor, FakeTensor) else tensor

    def set_values(self, tensor: Tensor, values: Tensor | None) -> None:
        """Note the values of integers and booleans."""
        key = self.key(tensor)
        size = numel(tensor) * tensor.element_size()
        if values is None or (
            key not in self._values and size != tensor.untyped_storage().nbytes()
        ):
            self._values.pop(key, None)
        else:
            _put(self._values, key, tensor, values, 0)


def _joined(old: Origin, new: Origin) -> Origin:
    """Return where memory comes from to parts of which something was written."""
    later = new if new.time >= old.time else old
    active = old.active or new.active
    weights = tuple(dict.fromkeys((*old.weights, *new.weights)))
    return dataclasses.replace(
        new,
        weights=() if active and weights != new.weights else weights,
        active=active,
        recomputed=old.recomputed or new.recomputed,
        picked=old.picked or new.picked,
        reached=old.reached or new.reached,
        last=later.last,
        time=later.time,
    )


def leaf_tensors(value: Any) -> list[Tensor]:
    """Return the tensors among the arguments or results of an operation."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def numel(tensor: Tensor) -> int:
    """Return the number of elements."""
    return math.prod(tensor.shape)


def _view(flat: Tensor, tensor: Tensor) -> Tensor:
    """Return what stands in `flat`, as the memory of a tensor, for its numbers."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    with unset_fake_temporarily():
        if count > len(flat):  # complex numbers seen as pairs of real ones
            flat = flat.repeat_interleave(count // len(flat))
        elif count < len(flat):
            flat = flat.view(count, -1).any(1)
        return flat.as_strided(tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _put(
    store: dict[int, Tensor], key: int, tensor: Tensor, values: Tensor, fill: bool | int
) -> None:
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = store.get(key)
    with unset_fake_temporarily():
        if flat is None or len(flat) != count:
            flat = torch.full((count,), fill, dtype=values.dtype)
        else:
            flat = flat.clone()
        _view(flat, tensor).copy_(values)
    store[key] = flat


Region = tuple[tuple[int, ...], tuple[int, ...], int]
"""Sizes, strides and offset."""


def without_repeats(tensor: Tensor) -> Region:
    """Return sizes, strides and offset of a tensor without dimensions in which it repeats itself."""
    dims = [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s != 0]
    return tuple(n for n, _ in dims), tuple(s for _, s in dims), int(tensor.storage_offset())


class Uses:
    """How often each number of every parameter multiplies.

    Attributes:
        uneven: Names of the parameters some of whose numbers multiply more often than others.
    """

    def __init__(self, sizes: dict[str, int]) -> None:
        self.uneven: set[str] = set()
        self._sizes = sizes
        self._regions: dict[str, list[tuple[Region, Fraction]]] = {}

    def add(self, name: str, tensor: Tensor, macs: int, *, own_memory: bool, picked: bool) -> None:
        """Note a product of a parameter.

        Args:
            name: The parameter.
            tensor: The factor, which is made of it.
            macs: What the product costs.
            own_memory: Whether the factor lies in the memory of the parameter.
            picked: See `Origin`.
        """
        region = without_repeats(tensor)
        size = math.prod(region[0])
        if macs == 0 or (size % self._sizes[name] == 0 and not picked):
            return
        if not own_memory or picked:
            self.uneven.add(name)
        else:
            self._regions.setdefault(name, []).append((region, Fraction(macs, size)))

    def all_uneven(self) -> frozenset[str]:
        """Return `uneven` with the parameters whose parts were used unequally."""
        for name, regions in self._regions.items():
            if name not in self.uneven and not _cover_evenly(regions, self._sizes[name]):
                self.uneven.add(name)
        return frozenset(self.uneven)


def _cover_evenly(regions: Iterable[tuple[Region, Fraction]], size: int) -> bool:
    """Tell whether regions of a parameter together use each of its numbers equally often."""
    together: dict[Region, Fraction] = {}
    for region, each in regions:
        together[region] = together.get(region, Fraction(0)) + each
    ranges = {region: _range(region) for region in together}
    # What begins and ends at each place adds up to nothing but at both ends.
    steps: dict[int, Fraction] = {}
    for region, each in together.items():
        found = ranges[region]
        if found is None:
            return _cover_evenly_strided(together, size)
        start, end = found
        steps[start] = steps.get(start, Fraction(0)) + each
        steps[end] = steps.get(end, Fraction(0)) - each
    return {place for place, step in steps.items() if step} == {0, size}


def _cover_evenly_strided(together: dict[Region, Fraction], size: int) -> bool:
    with unset_fake_temporarily():
        uses = torch.zeros(size, dtype=torch.float64)
        for region, each in together.items():
            part = torch.zeros(size, dtype=torch.float64)
            part.as_strided(*region).fill_(float(each))
            uses += part
        return bool((uses == uses[0]).all())


def _range(region: Region) -> tuple[int, int] | None:
    """Return the beginning and end of a region without holes, else None."""
    sizes, strides, offset = region
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(sizes, strides, strict=True) if n > 1):
        if stride != expected:
            return None
        expected *= size
    return offset, offset + math.prod(sizes)
