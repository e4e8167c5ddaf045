"""The one place that walks and rewires modules."""

import fnmatch
import functools
import sys
import types
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from isoflop.errors import InputError, IsoflopError

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
            f"isoflop.models.build_model({model!r})."
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
    """Return the configurations of transformers that modules hold, each once, by their paths."""
    found: dict[int, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        config = module.__dict__.get("config")
        if hasattr(config, "to_dict") and hasattr(config, "model_type"):
            found.setdefault(id(config), (f"{path}.config" if path else "config", config))
    return dict(found.values())


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace modules wherever they occur and return the root, which may itself be replaced.

    A module that hangs under several parents is replaced by one and the same new module. So is one
    that modules hold in plain attributes, in lists, tuples, dicts and partial functions there, or
    by its bound `forward`. Code that holds modules elsewhere is not followed, see `check_replaced`.
    """
    if model in new:
        return new[model]
    seen: set[int] = set()
    for parent in list(model.modules()):
        for name, value in list(vars(parent).items()):
            item = _with_replaced(value, new, seen)
            if item is not value:
                parent.__dict__[name] = item
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


def _with_replaced(value: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """Return `value` with modules replaced, lists and dicts in place."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if isinstance(value, types.MethodType):
        name, owner = value.__name__, value.__self__
        # Other methods than these may not exist in the new module, or do something else there.
        plain = name == "forward" or getattr(nn.Module, name, None) is value.__func__
        own = getattr(type(owner), name, None) is value.__func__
        if plain and own and isinstance(owner, nn.Module) and owner in new:
            return getattr(new[owner], name)
        return value
    if isinstance(value, (tuple, functools.partial)):
        parts = (value.func, value.args, value.keywords) if callable(value) else value
        items = [_with_replaced(item, new, seen) for item in parts]
        if all(item is part for item, part in zip(items, parts, strict=True)):
            return value
        if isinstance(value, functools.partial):
            return type(value)(items[0], *items[1], **items[2])
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, (list, dict, deque)) and id(value) not in seen:
        seen.add(id(value))
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            replaced = _with_replaced(item, new, seen)
            if replaced is not item:
                value[key] = replaced
    return value


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
            arguments; or a dict of keyword arguments.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
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


def is_flipped(module: nn.Module) -> bool:
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
    flipped = getattr(module, "transposed", False) or is_flipped(module)
    return (1, 0) if flipped else (0, 1)
