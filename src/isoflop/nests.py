"""Tensors in nested data: lists, dicts, dataclasses, and objects of anybody's classes."""

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, range, slice)


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor in a nest, each occurrence, in order.

    Looked into are sequences, sets, mappings, and the attributes of objects, those in slots too.
    Modules are not: their tensors are the model's, not its data.
    """
    found: list[Tensor] = []
    _collect(value, found, set())
    return found


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest with every tensor replaced by `change(tensor)`.

    Containers and objects that hold tensors are copied, so that those given stay as they are.
    """
    return _mapped(value, change, {})


def _collect(value: Any, found: list[Tensor], under_way: set[int]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
        return
    if id(value) in under_way:
        return
    under_way.add(id(value))
    for _, item in _items(value):
        _collect(item, found, under_way)
    under_way.discard(id(value))


def _mapped(value: Any, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if id(value) in done:
        return done[id(value)]
    # Until it is known what becomes of it, a nest that holds itself is left as it is.
    done[id(value)] = value
    new = [(key, item, _mapped(item, change, done)) for key, item in _items(value)]
    if all(before is after for _, before, after in new):
        return value
    done[id(value)] = result = _rebuilt(value, [(key, after) for key, _, after in new])
    return result


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Iterate over the parts of a nest with the keys under which `_rebuilt` puts them back."""
    if isinstance(value, (*_PLAIN, nn.Module)):
        return
    if isinstance(value, (list, tuple, deque)):
        yield from enumerate(value)
    elif isinstance(value, (set, frozenset)):
        yield from ((item, item) for item in value)
    elif isinstance(value, Mapping):
        yield from ((key, value[key]) for key in value)
    elif not callable(value) or _attributes(value):
        yield from _attributes(value)


def slots_of(value: Any) -> dict[str, Any]:
    """Return the attributes that an object has in slots."""
    slots = [s for kind in type(value).__mro__ for s in _slots(kind) if hasattr(value, s)]
    return {name: getattr(value, name) for name in slots}


def _attributes(value: Any) -> list[tuple[str, Any]]:
    return list((slots_of(value) | getattr(value, "__dict__", {})).items())


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _rebuilt(value: Any, items: list[tuple[Any, Any]]) -> Any:
    if isinstance(value, tuple):
        new = [item for _, item in items]
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
    if isinstance(value, (set, frozenset)):
        return type(value)(item for _, item in items)
    result = copy.copy(value)
    for key, item in items:
        if isinstance(value, (list, deque, Mapping)):
            result[key] = item
        else:
            object.__setattr__(result, key, item)  # dataclasses may be frozen
    return result
