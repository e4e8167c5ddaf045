"""Keeping what belongs to the user as it is while a copy of a model runs."""

import collections
import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from isoflop.surgery import STORES

_ATOMIC = (
    type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.CodeType,
    torch.dtype, torch.device, Tensor,
)  # fmt: skip
"""Objects in which nothing is noted."""

_CACHED = type(functools.lru_cache(lambda: None))
_CONTAINERS = (list, dict, set, collections.deque)
_FOREIGN = sys.stdlib_module_names | {"torch", "numpy"}


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back afterwards what a run of a copy of `model` changes outside of the copy.

    That is what hooks and other functions write to: lists, dicts and other objects that they refer
    to by a variable of an enclosing function, by a global one, or by a class; and the caches of
    functions. Hooks on all modules of the process do not run.

    Args:
        model: The original.
    """
    everywhere = {name: hooks for name, hooks in vars(torch_module).items() if _for_all(name)}
    kept = _Kept(model)
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in STORES:
                kept.keep(value)
    for kind in {base for module in model.modules() for base in type(module).__mro__}:
        kept.keep_class(kind)
    for name, hooks in everywhere.items():
        setattr(torch_module, name, type(hooks)())
    try:
        yield
    finally:
        for name, hooks in everywhere.items():
            setattr(torch_module, name, hooks)
        kept.restore()


def _for_all(name: str) -> bool:
    return name.startswith("_global_forward") and "hooks" in name


def _is_foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _FOREIGN and kind.__module__ != "__main__"


class _Kept:
    """The state of objects as it was, and what puts it back."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {id(module) for module in model.modules()}
        self._restorers: list[Callable[[], None]] = []

    def restore(self) -> None:
        for restore in self._restorers:
            restore()

    def keep_class(self, kind: type) -> None:
        """Keep what is stored in a class, and what its methods may write to."""
        if id(kind) in self._seen or _is_foreign(kind):
            return
        self._seen.add(id(kind))
        before = dict(vars(kind))
        self._restorers.append(functools.partial(_restore_class, kind, before))
        for value in before.values():
            if isinstance(value, (types.FunctionType, staticmethod, classmethod)):
                self._keep_globals(getattr(value, "__func__", value))
            else:
                self.keep(value)

    def keep(self, value: Any) -> None:
        """Keep an object and what it refers to."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if isinstance(value, type):
                self.keep_class(value)
            if isinstance(value, _ATOMIC) or id(value) in self._seen:
                continue
            self._seen.add(id(value))
            if isinstance(value, types.FunctionType):
                self._keep_globals(value)
                self._keep_cells(value)
                waiting += _surroundings(value)
            elif isinstance(value, _CACHED):
                self._keep_cache(value)
            elif isinstance(value, functools.partial):
                waiting += [value.func, *value.args, *value.keywords.values()]
            elif isinstance(value, types.MethodType):
                waiting += [value.__func__, value.__self__]
            elif isinstance(value, _CONTAINERS):
                before = list(value.items()) if isinstance(value, dict) else list(value)
                self._restorers.append(functools.partial(_refill, value, before))
                waiting += [v for _, v in before] if isinstance(value, dict) else before
            elif isinstance(value, tuple):
                waiting += value
            elif isinstance(value, nn.Module) or not _is_foreign(type(value)):
                self.keep_class(type(value))
                waiting.append(getattr(value, "__dict__", None))

    def _keep_globals(self, function: Any) -> None:
        code = getattr(function, "__code__", None)
        if code is None or id(code) in self._seen:
            return
        self._seen.add(id(code))
        space = function.__globals__
        for name, value in _global_names(function).items():
            if isinstance(value, type):
                self.keep_class(value)
            elif isinstance(value, types.FunctionType):
                if value.__module__ == function.__module__:
                    self.keep(value)
            elif not isinstance(value, types.ModuleType):
                self._restorers.append(functools.partial(_put_back, space, name, value))
                self.keep(value)

    def _keep_cells(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):
                value = cell.cell_contents
                self._restorers.append(functools.partial(setattr, cell, "cell_contents", value))

    def _keep_cache(self, cached: Any) -> None:
        misses = cached.cache_info().misses

        def clear() -> None:
            # The cache may hold tensors without values now.
            if cached.cache_info().misses != misses:
                cached.cache_clear()

        self._restorers.append(clear)


def _global_names(function: Any) -> dict[str, Any]:
    """Return the global variables that a function reads or writes."""
    names: set[str] = set()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    space = function.__globals__
    return {name: space[name] for name in sorted(names) if name in space}


def _surroundings(function: types.FunctionType) -> list[Any]:
    """Return what a function uses besides its arguments and global variables."""
    found: list[Any] = [function.__defaults__, function.__kwdefaults__, function.__dict__]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            found.append(cell.cell_contents)
    return found


def _refill(container: Any, before: list[Any]) -> None:
    now = list(container.items()) if isinstance(container, dict) else list(container)
    if isinstance(container, set):
        same = container == set(before)
    else:
        flat = [x for item in now for x in item] if isinstance(container, dict) else now
        old = [x for item in before for x in item] if isinstance(container, dict) else before
        same = len(flat) == len(old) and all(a is b for a, b in zip(flat, old, strict=True))
    if not same:
        container.clear()
        if isinstance(container, (dict, set)):
            container.update(before)
        else:
            container.extend(before)


def _put_back(space: dict[str, Any], name: str, value: Any) -> None:
    if space.get(name) is not value:
        space[name] = value


def _restore_class(kind: type, before: dict[str, Any]) -> None:
    for name, value in dict(vars(kind)).items():
        if not name.startswith("__") and before.get(name) is not value:
            if name in before:
                setattr(kind, name, before[name])
            else:
                delattr(kind, name)
