"""Copies of models that have nothing in common with the original, with other tensors in them."""

import copy
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_leaves_with_path

from isoflop.errors import IsoflopError
from isoflop.nests import slots_of
from isoflop.surgery import STORES

Make = Callable[[nn.Module, str, str, Tensor], Tensor]


def copy_with_tensors(model: nn.Module, make: Make, *, share_others: bool = False) -> nn.Module:
    """Deep-copy `model` with every tensor replaced by `make(module, path, attribute, tensor)`.

    The tensors of `model` itself are neither copied nor read, so a model too large for a second
    copy, or one on the meta device, can be used. Ties stay ties. Tensors that a module holds in a
    list, tuple or dict, such as a cache, are replaced too; their name says where they are.

    Functions that modules hold, such as ``self.middle = lambda x: self.b(x)`` or a hook, are copied
    with what they refer to: those of the copy use the modules of the copy.

    Args:
        model: Any module.
        make: Makes the tensors of the copy.
        share_others: Let the copy have attributes of the original that cannot be copied, such as
            locks and open files; for copies that are run once and dropped.

    Raises:
        IsoflopError: An attribute cannot be copied; the message names it.
    """
    tensors: dict[int, Any] = {}
    for module, path, name, tensor in (*owned_tensors(model), *contained_tensors(model)):
        if id(tensor) in tensors:
            continue
        new = make(module, path, name, tensor)
        if isinstance(tensor, nn.Parameter) and not isinstance(new, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        tensors[id(tensor)] = new
    functions = _functions(model, hooks=share_others)
    try:
        return _copied(model, functions, dict(tensors))
    except Exception as error:
        stuck = _uncopyable(model, tensors)
        if not stuck or not share_others:
            raise _refusal(model, stuck, error) from error
    return _copied(model, functions, tensors | {id(value): value for value in stuck.values()})


def owned_tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    """Iterate over `(module, path, attribute, tensor)` of all parameters, buffers and plain tensors."""
    for path, module in model.named_modules():
        for store in (module._parameters, module._buffers, module.__dict__):
            for name, value in store.items():
                if isinstance(value, Tensor):
                    yield module, path, name, value


def contained_tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    """Iterate likewise over the tensors in containers that modules hold as attributes."""
    for path, module in model.named_modules():
        for name, value in _attributes(module):
            if isinstance(value, (list, tuple, dict)):
                for keys, item in tree_leaves_with_path(value):
                    if isinstance(item, Tensor):
                        yield module, path, name + keystr(keys), item


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Iterate over the attributes of a module besides its parameters, buffers and children."""
    return ((name, value) for name, value in module.__dict__.items() if name not in STORES)


def _copied(model: nn.Module, functions: list["_Function"], memo: dict[int, Any]) -> nn.Module:
    memo.update({id(function.old): function.new for function in functions})
    result = copy.deepcopy(model, memo)
    for function in functions:
        function.fill(memo)
    for old, new in zip(model.modules(), result.modules(), strict=False):
        for name, value in slots_of(old).items():  # which PyTorch's modules do not copy
            if not hasattr(new, name):
                setattr(new, name, copy.deepcopy(value, memo))
    made = {id(tensor) for tensor in memo.values() if isinstance(tensor, Tensor)}
    for name, parameter in result.named_parameters():
        if id(parameter) not in made:
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            raise TypeError(
                f"{name} is not what copy.deepcopy was told to make: {type(model).__name__}, {owner} or "
                "a module between them has a `__deepcopy__` that disregards its memo"
            )
    return result


class _Function:
    """A function and its copy, which is filled once it is known what it refers to."""

    def __init__(self, old: types.FunctionType, own: set[int] | None) -> None:
        self.old = old
        self._own = own
        self._globals = dict(old.__globals__)
        cells = tuple(types.CellType() for _ in old.__closure__ or ())
        self.new = types.FunctionType(
            old.__code__, self._globals, old.__name__, None, cells if old.__closure__ else None
        )

    def fill(self, memo: dict[int, Any]) -> None:
        old, new = self.old, self.new
        new.__defaults__ = self._duplicate(old.__defaults__, memo)
        new.__kwdefaults__ = self._duplicate(old.__kwdefaults__, memo)
        new.__dict__.update(old.__dict__)
        for before, after in zip(old.__closure__ or (), new.__closure__ or (), strict=True):
            if _is_full(before):
                after.cell_contents = self._duplicate(before.cell_contents, memo)
        for name, value in _globals_of(old):
            self._globals[name] = self._duplicate(value, memo)

    def _duplicate(self, value: Any, memo: dict[int, Any]) -> Any:
        """Return what the copy refers to in place of `value`."""
        own = self._own
        if own is not None and all(id(thing) not in own for thing in _reachable([value], own)):
            return value
        try:
            return copy.deepcopy(value, memo)
        except Exception:  # an open file, for instance
            return value


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _globals_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Iterate over the global variables that a function names and might change."""
    fixed = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if value is not None and not isinstance(value, fixed):
            yield name, value


def _functions(model: nn.Module, *, hooks: bool) -> list[_Function]:
    """Return the functions in the attributes of modules that a copy cannot share with `model`.

    Those are the ones that refer to its modules or tensors, or to lists and dictionaries that its
    modules hold as well, such as one in which hooks leave activations. What else they refer to is shared.

    Args:
        model: The model.
        hooks: Whether hooks are to be run on copies of all that they refer to, since they may note what
            they see.
    """
    own = {id(module) for module in model.modules()}
    own |= {id(tensor) for *_, tensor in owned_tensors(model)}
    places = [(name, value) for module in model.modules() for name, value in _attributes(module)]
    found = _functions_in([value for _, value in places], own)
    common = own | {id(v) for _, v in places if isinstance(v, (list, dict, set, deque))}
    functions = {
        key: _Function(function, None if hooks else common)
        for key, function in found.items()
        if any(id(thing) in common for thing in _reachable([function], common))
    }
    if hooks:
        noting = _functions_in([v for name, v in places if name.endswith("_hooks")], own)
        functions |= {key: _Function(function, None) for key, function in noting.items()}
    return list(functions.values())


def _functions_in(values: list[Any], own: set[int]) -> dict[int, types.FunctionType]:
    return {
        id(thing): thing
        for thing in _reachable(values, own)
        if isinstance(thing, types.FunctionType)
    }


def _reachable(values: list[Any], own: set[int]) -> Iterator[Any]:
    """Iterate over what hangs on values: items, attributes, and what functions refer to.

    The modules and tensors of the model, `own`, are given but not entered.
    """
    seen: set[int] = set()
    waiting = list(values)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, bool, type(None), type)):
            continue
        seen.add(id(thing))
        yield thing
        if id(thing) not in own:
            waiting.extend(_parts(thing))


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    if isinstance(thing, dict):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__]
    if isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_full(cell)]
        used = [v for _, v in _globals_of(thing) if isinstance(v, (nn.Module, Tensor))]
        defaults = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        return [*cells, *defaults, *used]
    if isinstance(thing, (Tensor, types.ModuleType)):
        return []
    return list(getattr(thing, "__dict__", {}).values())


def _uncopyable(model: nn.Module, tensors: dict[int, Any]) -> dict[str, Any]:
    """Return the attributes of modules that cannot be copied, by their names."""
    known = tensors | {id(module): module for module in model.modules()}
    stuck = {}
    for path, module in model.named_modules():
        for name, value in _attributes(module):
            try:
                copy.deepcopy(value, dict(known))
            except Exception:
                stuck[f"{path}.{name}" if path else name] = value
    return stuck


def _refusal(model: nn.Module, stuck: dict[str, Any], error: Exception) -> IsoflopError:
    if not stuck:
        return IsoflopError(f"{type(model).__name__} cannot be copied by copy.deepcopy: {error}")
    name, value = next(iter(stuck.items()))
    return IsoflopError(
        f"The attribute {name!r} of {type(model).__name__}, of type {type(value).__name__}, cannot be "
        f"copied ({error}), and a copy of the model is needed. Set it to None and give it back "
        "afterwards, or keep it outside of the model."
    )
