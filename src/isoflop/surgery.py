"""The one place that walks and rewires modules."""

import argparse
import contextlib
import dataclasses
import fnmatch
import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from isoflop.errors import InputError, IsoflopError
from isoflop.nests import slots_of

STORES = ("_parameters", "_buffers", "_modules")
"""Attributes in which a module holds its parameters, buffers and children."""

ExampleInputs = Any
"""A tensor, one or several shapes, a sequence of positional arguments, or a dict of keyword arguments."""


def check_module(model: Any) -> None:
    """Raise unless `model` is a module.

    Raises:
        IsoflopError: It is none; the message says what to pass.
    """
    if isinstance(model, str):
        raise IsoflopError(
            f"model must be a torch.nn.Module, not the name {model!r}. Build it first: "
            f"isoflop.lab.models.build_model({model!r})."
        )
    if not isinstance(model, nn.Module):
        raise IsoflopError(f"model must be a torch.nn.Module, not {type(model).__name__}.")


def is_compiled(module: nn.Module) -> bool:
    """Tell whether a module is what `torch.compile` returns for one."""
    dynamo = sys.modules.get(
        "torch._dynamo.eval_frame"
    )  # slow to import, and not there without one
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def configs(model: nn.Module) -> dict[str, Any]:
    """Return the configurations that modules hold, each once, by their paths.

    Those are the ones of transformers, dataclasses, and namespaces.
    """
    found: dict[int, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if _is_config(value):
                found.setdefault(id(value), (f"{path}.{name}" if path else name, value))
    return dict(found.values())


def _is_config(value: Any) -> bool:
    if isinstance(value, (type, nn.Module)) or not hasattr(value, "__dict__"):
        return False
    namespace = isinstance(value, (types.SimpleNamespace, argparse.Namespace))
    of_transformers = hasattr(value, "to_dict") and hasattr(value, "model_type")
    return namespace or of_transformers or dataclasses.is_dataclass(value)


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace modules wherever they occur and return the root, which may itself be replaced.

    A module that hangs under several parents is replaced by one and the same new module. So is one
    that modules hold in plain attributes: in containers, partial functions and objects there, in
    what functions there refer to (their closures and defaults), and by its bound `forward`. Code
    that holds modules elsewhere is not followed, see `check_replaced`.
    """
    if model in new:
        return new[model]
    parents = list(model.modules())
    # A new module may hold the one that it replaces.
    seen = {id(module) for module in (*parents, *new.values())}
    for parent in parents:
        _replace_items(vars(parent), new, seen)
    return model


def become(module: nn.Module, new: nn.Module) -> None:
    """Make of `module` what `new` is, in place, but for its hooks and the attributes that `new` lacks.

    Whatever refers to the module goes on with what it has become: parents, lists, dictionaries,
    closures, bound methods.
    """
    state = {**module.__dict__, **new.__dict__}
    for name in nn.Module().__dict__.keys() - {*STORES, "_non_persistent_buffers_set", "training"}:
        state[name] = module.__dict__[name]
    module.__class__ = type(new)
    module.__dict__.clear()
    module.__dict__.update(state)


def global_variables(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Return the global variables that a function names and might change."""
    fixed = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)
    named = [(name, function.__globals__.get(name)) for name in function.__code__.co_names]
    return [(name, v) for name, v in named if v is not None and not isinstance(v, fixed)]


def _with_replaced(value: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """Return `value` with modules replaced, in place in what can be changed."""
    if isinstance(value, weakref.ProxyTypes):
        return value
    if isinstance(value, nn.Module) and value in new:
        return new[value]
    if isinstance(value, types.MethodType):
        name, owner = value.__name__, value.__self__
        if not isinstance(owner, nn.Module):
            _with_replaced(owner, new, seen)
            return value
        # Other methods than these may not exist in the new module, or do something else there.
        plain = name == "forward" or getattr(nn.Module, name, None) is value.__func__
        own = getattr(type(owner), name, None) is value.__func__
        return getattr(new[owner], name) if plain and own and owner in new else value
    if isinstance(value, (tuple, set, frozenset, functools.partial)):
        return _rebuilt(value, new, seen)
    if isinstance(value, _CLOSED) or id(value) in seen:
        return value
    seen.add(id(value))
    if isinstance(value, (list, deque)):
        for number, item in enumerate(value):
            value[number] = _with_replaced(item, new, seen)
    elif isinstance(value, dict):
        _replace_items(value, new, seen)
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                item = _with_replaced(cell.cell_contents, new, seen)
                if item is not cell.cell_contents:
                    cell.cell_contents = item
        item = _with_replaced(value.__defaults__, new, seen)
        if item is not value.__defaults__:
            value.__defaults__ = item
        _with_replaced(value.__kwdefaults__, new, seen)
        for (
            name
        ) in value.__code__.co_names:  # copies of functions have global variables of their own
            item = value.__globals__.get(name)
            if isinstance(item, nn.Module) and item in new:
                value.__globals__[name] = new[item]
    for name, item in slots_of(value).items():
        after = _with_replaced(item, new, seen)
        if after is not item:
            object.__setattr__(value, name, after)
    _replace_items(getattr(value, "__dict__", {}), new, seen)
    return value


_CLOSED = (str, bytes, int, float, complex, type(None), type, Tensor, types.ModuleType)
"""What holds no modules, or is not the model's."""


def _replace_items(items: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> None:
    for name, item in list(items.items()):
        after = _with_replaced(item, new, seen)
        if after is not item:
            items[name] = after


def _rebuilt(value: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """Return a container that cannot be changed, or knows no places, with modules replaced."""
    whole = isinstance(value, functools.partial)
    parts = (value.func, value.args, value.keywords) if whole else tuple(value)
    items = [_with_replaced(item, new, seen) for item in parts]
    if all(item is part for item, part in zip(items, parts, strict=True)):
        return value
    if whole:
        return type(value)(items[0], *items[1], **items[2])
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


_ModuleT = TypeVar("_ModuleT", bound=nn.Module)


def recast(module: nn.Module, kind: type[_ModuleT]) -> _ModuleT:
    """Return a module of class `kind` that has all that `module` has: tensors, children, hooks."""
    new = kind.__new__(kind)
    new.__dict__.update(
        {
            name: value.copy() if isinstance(value, (dict, set)) else value
            for name, value in module.__dict__.items()
        }
    )
    return new


def match_paths(paths: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Return the module paths that match any of the patterns, or lie below one that does.

    Raises:
        IsoflopError: A pattern matches nothing.
    """
    paths = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        hits = {
            p
            for p in paths
            if fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(p, f"{pattern}.*")
        }
        if not hits:
            raise IsoflopError(
                f"The exclude pattern {pattern!r} matches no module. Patterns are module paths, with * "
                f"for any characters. The paths are {', '.join(paths[:10])}"
                f"{', …' if len(paths) > 10 else ''}."
            )
        found |= hits
    return found


def scripted_parts(model: nn.Module) -> list[str]:
    """Return the paths of the modules that torch.jit has compiled, without those inside of them."""
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(not outer or path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, torch.jit.ScriptModule) and not inside:
            found.append(path)
    return found


def input_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype in which `model` takes floating-point inputs."""
    dtypes = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return next(dtypes, torch.get_default_dtype())


def normalize_inputs(
    model: nn.Module, example_inputs: ExampleInputs
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return example inputs as `(args, kwargs)`.

    Args:
        model: The model that takes them.
        example_inputs: A tensor; a shape (a sequence of integers, meaning one floating-point
            tensor) or a sequence of shapes, one for each argument; a tuple or list of positional
            arguments; or a dict of keyword arguments or of their shapes.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        named = dict(example_inputs)
        if named and all(_is_shape(item) for item in named.values()):
            named = {name: _of_shape(model, shape) for name, shape in named.items()}
        return (), named
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        given = tuple(example_inputs)
        if _is_shape(given):
            return (_of_shape(model, given),), {}
        if given and all(_is_shape(item) for item in given):
            return tuple(_of_shape(model, shape) for shape in given), {}
        if given:
            return given, {}
    raise InputError(
        "example_inputs must be a tensor, a shape such as (1, 3, 224, 224), a tuple of positional "
        "arguments or of their shapes, or a dict of keyword arguments, not "
        f"{example_inputs!r}."
    )


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
    )


def _of_shape(model: nn.Module, shape: Sequence[int]) -> Tensor:
    if min(shape) < 1:
        raise InputError(f"The input shape {tuple(shape)} must have positive sizes only.")
    return torch.empty(tuple(shape), dtype=input_dtype(model), device="meta")


def is_fan_in_fan_out(module: nn.Module) -> bool:
    """Tell whether `module` is the Linear with weight `(Din, Dout)` of Hugging Face's GPT-2.

    It goes by the name `transformers.pytorch_utils.Conv1D`; transformers is not imported, as it may
    not be installed.
    """
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def weight_sides(module: nn.Module, weight: Tensor) -> tuple[int, int]:
    """Return which dimension of a weight of `module` is its output and which its input.

    The weights of all experts of a mixture lie in one tensor, of which the first dimension is their
    number; the classes of transformers say in `is_transposed` which way round the matrices are.
    """
    if weight.ndim == 3 and not isinstance(module, _ConvNd):
        return (2, 1) if getattr(module, "is_transposed", False) else (1, 2)
    fan_in_fan_out = getattr(module, "transposed", False) or is_fan_in_fan_out(module)
    return (1, 0) if fan_in_fan_out else (0, 1)
