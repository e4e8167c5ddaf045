"""Copies of models that have nothing in common with the original, with other tensors in them."""

import copy
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import keystr, tree_leaves_with_path

from isoflop.errors import IsoflopError
from isoflop.nests import slots_of
from isoflop.randomness import kept_random_state
from isoflop.surgery import STORES, global_variables

_PLAIN = (str, bytes, int, float, complex, bool, type(None))

Make = Callable[[nn.Module, str, str, Tensor], Tensor]


def copy_with_tensors(model: nn.Module, make: Make, *, share_others: bool = False) -> nn.Module:
    """Deep-copy `model` with every tensor replaced by `make(module, path, attribute, tensor)`.

    The tensors of `model` itself are neither copied nor read, so a model too large for a second
    copy, or one on the meta device, can be used. Ties stay ties. Tensors that a module holds in a
    list, tuple or dict, such as a cache, are replaced too; their name says where they are.

    Functions that modules hold, such as ``self.middle = lambda x: self.b(x)`` or a hook, are copied
    with what they refer to: those of the copy use the modules of the copy. Hooks on tensors are not
    copied, see `copy_tensor_hooks`.

    Args:
        model: Any module.
        make: Makes the tensors of the copy.
        share_others: Let the copy have attributes of the original that cannot be copied, such as
            locks and open files, and copy modules attribute by attribute where their own
            `__deepcopy__` fails; for copies that are run once and dropped.

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
        keep_marks(tensor, new)
        tensors[id(tensor)] = new
    functions = _functions(model, hooks=share_others)
    # A `__deepcopy__` may construct modules anew, which draws weights.
    with kept_random_state(model):
        try:
            return _copied(model, functions, dict(tensors))
        except Exception as error:
            stuck = _uncopyable(model, tensors)
            own = [module for module in model.modules() if _copies_itself(module)]
            if not (share_others and (stuck or own)):
                raise _refusal(model, stuck, error) from error
        others = {id(value): value for value in stuck.values()}
        return _copied(model, functions, tensors | others, own)


def keep_marks(old: Tensor, new: Tensor) -> None:
    """Give `new` the attributes that somebody has put on `old`, such as ``no_weight_decay = True``."""
    for name, value in vars(old).items():
        if new is not old and name not in vars(new):
            setattr(new, name, value.detach().clone() if isinstance(value, Tensor) else value)


def copy_tensor_hooks(model: nn.Module, new: nn.Module) -> None:
    """Register the hooks on the parameters of `model` with the parameters of the same names in `new`.

    What a hook refers to in `model` is in its copy what has the same name in `new`.

    Args:
        model: The model whose hooks are copied; it stays as it is.
        new: A model made of it.

    Raises:
        IsoflopError: A hook has no place in `new`: the parameter is gone, or has another shape and the
            hook uses tensors or modules, which may not fit. The message names the parameter.
    """
    counterparts = _counterparts(model, new)
    own = {id(module) for module in model.modules()}
    own |= {id(tensor) for *_, tensor in owned_tensors(model)}
    for name, parameter in model.named_parameters():
        hooks: list[tuple[str, Any]] = [
            (method, hook)
            for method, store in _TENSOR_HOOKS.items()
            for hook in (getattr(parameter, store) or {}).values()
        ]
        if not hooks:
            continue
        after: nn.Parameter | None = counterparts.get(id(parameter))
        used = list(_reachable([hook for _, hook in hooks], own))
        reason = ""
        if after is None:
            reason = "other weights take its place"
        elif any(isinstance(thing, Optimizer) for thing in used):
            reason = "the hook uses an optimizer of parameters that are replaced"
        elif any(id(thing) in own and id(thing) not in counterparts for thing in used):
            reason = "the hook uses a part of the model that is replaced"
        elif after.shape != parameter.shape and any(
            isinstance(thing, (Tensor, nn.Module)) for thing in used
        ):
            reason = (
                f"becomes {tuple(after.shape)}, for which the tensors or modules that the hook uses "
                "may not be made"
            )
        if reason:
            raise IsoflopError(
                f"The parameter {name!r}, {tuple(parameter.shape)}, has a hook on its gradient, and "
                f"{reason}. Remove the hook (by the handle that registered it) and register one with "
                "the parameters of the transformed model, or exclude the layer from a transform that "
                "keeps widths, such as SparseParallel."
            )
        assert after is not None
        for method, hook in hooks:
            trained, after.requires_grad = after.requires_grad, True
            getattr(after, method)(_followed(hook, own, counterparts))
            after.requires_grad = trained


_TENSOR_HOOKS = {
    "register_hook": "_backward_hooks",
    "register_post_accumulate_grad_hook": "_post_accumulate_grad_hooks",
}
"""What registers a hook with a tensor, and where the tensor keeps it."""


def _counterparts(model: nn.Module, new: nn.Module) -> dict[int, Any]:
    """Return the modules and tensors of `new` by the ids of those of the same names in `model`."""

    def by_name(root: nn.Module) -> dict[str, Any]:
        modules: dict[str, Any] = dict(root.named_modules(remove_duplicate=False))
        return modules | {f"{path}.{name}": tensor for _, path, name, tensor in owned_tensors(root)}

    after = by_name(new)
    return {id(value): after[name] for name, value in by_name(model).items() if name in after}


def _followed(hook: Any, own: set[int], memo: dict[int, Any]) -> Any:
    """Return a hook that uses the counterparts in `memo` of what `hook` uses of a model."""
    if all(id(thing) not in own for thing in _reachable([hook], own)):
        return hook
    memo = dict(memo)
    functions = [
        _Function(function, own)
        for function in _functions_in([hook], own).values()
        if any(id(thing) in own for thing in _reachable([function], own))
    ]
    memo.update({id(function.old): function.new for function in functions})
    result = copy.deepcopy(hook, memo)
    for function in functions:
        function.fill(memo)
    return result


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


def _copies_itself(module: nn.Module) -> bool:
    method = getattr(type(module), "__deepcopy__", None)
    return method is not None and not method.__module__.startswith("torch.")


def _copied(
    model: nn.Module,
    functions: list["_Function"],
    memo: dict[int, Any],
    by_attributes: Sequence[nn.Module] = (),
) -> nn.Module:
    memo.update({id(function.old): function.new for function in functions})
    shells = [(module, type(module).__new__(type(module))) for module in by_attributes]
    memo.update({id(old): new for old, new in shells})
    for old, new in shells:
        new.__dict__.update(copy.deepcopy(old.__dict__, memo))
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
        for name, value in global_variables(old):
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
        used = [v for _, v in global_variables(thing) if isinstance(v, (nn.Module, Tensor))]
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
        path, kind = _stuck_module(model)
        what = f"The module {path!r} ({kind}) of {type(model).__name__}" if path else kind
        return IsoflopError(f"{what} cannot be copied by copy.deepcopy: {error}")
    name, value = next(iter(stuck.items()))
    return IsoflopError(
        f"The attribute {name!r} of {type(model).__name__}, of type {type(value).__name__}, cannot be "
        f"copied ({error}), and a copy of the model is needed. Set it to None and give it back "
        "afterwards, or keep it outside of the model."
    )


def _stuck_module(model: nn.Module) -> tuple[str, str]:
    """Return path and class of the innermost module that cannot be copied, else of the model."""
    for path, module in reversed(list(model.named_modules())):
        try:
            copy.deepcopy(module, {id(t): t for *_, t in owned_tensors(module)})
        except Exception:
            return path, type(module).__name__
    return "", type(model).__name__
