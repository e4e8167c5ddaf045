"""The one place that walks, copies and rewires modules."""

import copy
import fnmatch
import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import keystr, tree_leaves_with_path

from isoflop.errors import InputError, IsoflopError

ExampleInputs = Any
"""A tensor, a shape, a sequence of positional arguments, or a dict of keyword arguments."""


_STORES = ("_parameters", "_buffers", "_modules")


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
        for name, value in module.__dict__.items():
            if isinstance(value, (list, tuple, dict)) and name not in _STORES:
                for keys, item in tree_leaves_with_path(value):
                    if isinstance(item, Tensor):
                        yield module, path, name + keystr(keys), item


def copy_with_tensors(
    model: nn.Module, make: Callable[[nn.Module, str, str, Tensor], Tensor]
) -> nn.Module:
    """Deep-copy `model` with every tensor replaced by `make(module, path, attribute, tensor)`.

    The tensors of `model` itself are neither copied nor read, so a model too large for a second
    copy, or one on the meta device, can be used. Ties stay ties. Tensors that a module holds in a
    list, tuple or dict, such as a cache, are replaced too; their name says where they are.
    """
    memo: dict[int, Any] = {}
    for module, path, name, tensor in (*owned_tensors(model), *contained_tensors(model)):
        if id(tensor) in memo:
            continue
        new = make(module, path, name, tensor)
        if isinstance(tensor, nn.Parameter) and not isinstance(new, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = new
    return copy.deepcopy(model, memo)


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
            tensor); a tuple or list of positional arguments; or a dict of keyword arguments.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        shape = list(example_inputs)
        if shape and all(isinstance(size, int) and not isinstance(size, bool) for size in shape):
            if min(shape) < 1:
                raise InputError(f"The input shape {tuple(shape)} must have positive sizes only.")
            return (torch.empty(shape, dtype=input_dtype(model), device="meta"),), {}
        if shape:
            return tuple(shape), {}
    raise InputError(
        "example_inputs must be a tensor, a shape such as (1, 3, 224, 224), a tuple of positional "
        f"arguments or a dict of keyword arguments, not {example_inputs!r}."
    )


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
