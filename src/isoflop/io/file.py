"""`isoflop.save` and `isoflop.load`: a trained model in one safetensors file."""

import contextlib
import copy
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError, ModelFileError, PlanError
from isoflop.files import as_path, new_file, write_bytes
from isoflop.io.encoding import (
    ForeignValueError,
    decode,
    encode,
    foreign_type,
    is_plain,
    plain,
    tensors_in,
)
from isoflop.io.packing import BITS, POSITIONS, VALUES, PackedWeight, pack, unpack
from isoflop.io.source import LIBRARIES, ModelSource
from isoflop.io.state import MASK, Entry, entries_of, unwrapped
from isoflop.kernels.autotune.candidates import sparse_layer
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.masks import named_masks, remove_mask, set_mask
from isoflop.model_specs import split_spec
from isoflop.plan import Plan
from isoflop.sparsity.weights.sharding import distribute_like
from isoflop.surgery import replace_modules

FORMAT_VERSION = 2
"""Version 1 has no extras and no values as bytes, and is what files without any are."""

_KEY = "isoflop"


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    source: ModelSource | str | None = None,
) -> None:
    """Write a model to a safetensors file, its sparse weights without the zeros.

    The values and masks of the weights, masked or compressed, are kept exactly. The file is either
    complete or not there.

    Args:
        model: The model. Its `state_dict` is saved, extra state and what hooks make of it included:
            tensors, and numbers, texts, bytes, lists, tuples and dicts of these, never code. Names are
            those without `DistributedDataParallel`, `DataParallel` and `torch.compile`.
        path: The file, by custom with the suffix `.safetensors`.
        plan: The plan of the transform that made the model.
        source: How the dense model was built, or just its spec, such as ``"timm:resnet18"``. With
            it, and with the plan if there was a transform, `load` builds the model anew.

    Raises:
        IsoflopError: There is something else in the state, weights off a mask are not zero, the folder
            is missing, or the file cannot be written.
        PlanError: The plan is not that of the model.
    """
    path = new_file(path)
    if isinstance(source, str):
        source = ModelSource(spec=source)
    for name, value, kind in (("plan", plan, Plan), ("source", source, ModelSource)):
        if value is not None and not isinstance(value, kind):
            raise IsoflopError(f"{name} must be a {kind.__name__}, not {type(value).__name__}.")
    for spec in () if source is None else source.specs:
        split_spec(spec)
    model = unwrapped(model)
    entries = entries_of(model)
    if plan is not None:
        _check_plan(plan, entries)
    contents = _contents(entries)
    new = contents.extras or any(packed.dtype for packed in contents.packed.values())
    description = {
        "format_version": FORMAT_VERSION if new else 1,
        "weights": {name: packed.to_dict() for name, packed in contents.packed.items()},
        "aliases": contents.aliases,
        **({"extras": contents.extras} if contents.extras else {}),
        "plan": None if plan is None else plan.to_dict(),
        "source": None if source is None else source.to_dict(),
    }
    write_bytes(path, safetensors.torch.save(contents.tensors, {_KEY: json.dumps(description)}))


def load(
    path: str | os.PathLike[str], model: nn.Module | None = None
) -> tuple[nn.Module, Plan | None]:
    """Read a model that `save` wrote.

    Args:
        path: The file.
        model: The model to load into, in place: built as the one that was saved. Its sparse layers
            stay compressed and its other layers get masks. Without it, the model is built anew from
            the source that the file names, and stores its weights as the saved one did; only sources
            in libraries are built, never functions that a file names.

    Returns:
        The model and its plan, None if the file has none.

    Raises:
        ModelFileError: The file is missing, damaged, not written by `save`, or of another model, or
            the model refuses its state. The model is as it was then.
    """
    path = as_path(path)
    if model is None:
        model, plan, _ = read_model(path)
        return model, plan
    values, plan, _ = _read(path)
    _fill(path, unwrapped(model), values)
    return model, plan


def read_model(path: Path) -> tuple[nn.Module, Plan | None, ModelSource]:
    """Build the model of a file anew, as `load` does, and say how.

    Returns:
        The model, its plan, and its source.
    """
    values, plan, source = _read(path)
    if source is None:
        raise ModelFileError(
            f"{path} does not say how its model is built. Build it and pass it: "
            "isoflop.load(path, model). To have it built, save it with source='timm:NAME'."
        )
    foreign = [spec for spec in source.specs if spec.partition(":")[0] not in LIBRARIES]
    if foreign:
        raise ModelFileError(
            f"{path} names the function {foreign[0]!r} as the source of its model, which is not run "
            "just because a file says so. Call it, and pass the model: isoflop.load(path, model)."
        )
    model = source.build(plan)
    _fill(path, model, values)
    return _compressed(model, values), plan, source


@dataclass(frozen=True)
class _Contents:
    """What a file has of the state of a model.

    Attributes:
        tensors: All tensors, those of packed weights and of extras included.
        packed: The sparse weights, by full name.
        aliases: Further names of tensors and weights, with the name under which they are.
        extras: What is no ordinary tensor, as data that JSON knows, by full name.
    """

    tensors: dict[str, Tensor]
    packed: dict[str, PackedWeight]
    aliases: dict[str, str]
    extras: dict[str, Any]


@dataclass(frozen=True)
class _Weight:
    """A sparse weight of a file.

    Attributes:
        values: (nnz,).
        positions: (nnz,). Their ascending positions in the flat weight.
        packed: What else the file says.
    """

    values: Tensor
    positions: Tensor
    packed: PackedWeight

    def dense(self) -> Tensor:
        """Return the weight with its zeros."""
        dense = self.values.new_zeros(self.packed.shape)
        dense.view(-1)[self.positions] = self.values
        return dense

    def mask(self) -> Tensor:
        """Return the mask."""
        mask = torch.zeros(self.packed.shape, dtype=torch.bool)
        mask.view(-1)[self.positions] = True
        return mask


def _contents(entries: Mapping[str, Entry]) -> _Contents:
    """Return the state of a model, each tensor once, sparse weights packed."""
    seen: dict[Any, str] = {}
    contents = _Contents({}, {}, {}, {})
    for entry in sorted(entries.values(), key=_turn):
        if entry.part not in ("", "values"):
            continue
        name = entry.name
        if entry.place in seen:
            contents.aliases[name] = seen[entry.place]
            continue
        seen[entry.place] = name
        try:
            _add(contents, entry)
        except ForeignValueError as error:
            if "quantised" in str(error):
                raise IsoflopError(
                    f"{name!r} in the state of the model is {error}, which files do not hold: save the "
                    "floating-point model, and quantise what is loaded."
                ) from error
            where = "" if entry.module is None else f" of a {type(entry.module).__name__}"
            raise IsoflopError(
                f"{name!r}{where} in the state of the model is, or holds, {error}. Files hold tensors "
                "with values, and numbers, texts, bytes, lists, tuples and dicts of these, which load "
                "without running code: have `get_extra_state`, or the hook that made it, return such."
            ) from error
    return contents


def _turn(entry: Entry) -> int:
    """Return when an entry is written: those first whose tensors have the names that they must have."""
    if entry.part or entry.mask is not None:
        return 1
    return 0 if is_plain(entry.name, entry.value) else 2


def _add(contents: _Contents, entry: Entry) -> None:
    name, mask = entry.name, entry.mask
    if mask is None:
        if is_plain(name, entry.value):
            contents.tensors[name] = plain(entry.value)
        else:
            try:
                contents.extras[name] = encode(name, entry.value, contents.tensors)
            except RecursionError:
                raise ForeignValueError("something that holds itself") from None
        return
    layer = entry.layer
    weight, mask = plain(entry.value if layer is None else layer.dense_weight()), plain(mask)
    if weight.masked_fill(mask, 0).any():
        raise IsoflopError(
            f"The weight {name!r} is not zero off its mask, as that of an average over changing masks. "
            "Call `isoflop.apply_masks(averaged, model)` first: a file has what is on the mask."
        )
    storage = "masked" if layer is None else "compressed"
    tensors = pack(name, weight, mask)
    taken = tensors.keys() & contents.tensors.keys()
    if taken:
        raise ForeignValueError(
            f"a sparse weight whose values would be called {min(taken)!r}, as another"
        )
    contents.packed[name] = PackedWeight(tuple(weight.shape), storage, foreign_type(weight))
    contents.tensors.update(tensors)


def _check_plan(plan: Plan, entries: Mapping[str, Entry]) -> None:
    shapes = {entry.name: entry.shape for entry in entries.values()}
    for layer in plan.layers:
        if shapes.get(layer.parameter) != layer.shape:
            raise PlanError(
                f"The plan gives {layer.parameter!r} the shape {layer.shape}, but the model has "
                f"{shapes.get(layer.parameter)}. Save the model with its own plan; of an average, save "
                "`averaged.module`."
            )


def _read(path: Path) -> tuple[dict[str, Any], Plan | None, ModelSource | None]:
    """Return all that a file has: by name tensors, `_Weight`s and other data; plan and source."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise ModelFileError(
                    f"{path} was not written by `isoflop.save`. Read it with the library that wrote it."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelFileError(f"There is no file {path}.") from error
    except (OSError, safetensors.SafetensorError) as error:
        if path.is_dir():
            raise ModelFileError(
                f"{path} is a folder. Give a file that `isoflop.save` wrote."
            ) from error
        raise ModelFileError(f"{path} is no safetensors file, or a damaged one: {error}") from error
    try:
        description = json.loads(metadata[_KEY])
        version = description["format_version"]
        if version not in range(1, FORMAT_VERSION + 1):
            raise ModelFileError(
                f"{path} has format {version}, and this version of isoflop reads {FORMAT_VERSION}."
            )
        packed = {n: PackedWeight.from_dict(d) for n, d in description["weights"].items()}
        contents = _Contents(
            tensors, packed, dict(description["aliases"]), dict(description.get("extras", {}))
        )
        plan, source = description["plan"], description["source"]
        return (
            _unpacked(contents),
            None if plan is None else Plan.from_dict(plan),
            None if source is None else ModelSource.from_dict(source),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration) as error:
        if isinstance(error, IsoflopError):
            raise
        raise ModelFileError(f"The description in {path} is damaged: {error!r}.") from error


def _unpacked(contents: _Contents) -> dict[str, Any]:
    """Return, by name, tensors, `_Weight`s and other data."""
    tensors = contents.tensors
    values: dict[str, Any] = {}
    for name, packed in contents.packed.items():
        values[name] = _Weight(*unpack(name, packed, tensors), packed)
    used = {name + end for name in values for end in (VALUES, POSITIONS, BITS)}
    for name, data in contents.extras.items():
        values[name] = decode(data, tensors)
        used |= tensors_in(data)
    values |= {name: tensor for name, tensor in tensors.items() if name not in used}
    return values | {name: values[first] for name, first in contents.aliases.items()}


def _check_fit(path: Path, values: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """Raise unless the file has every entry of the model's state, in its shape and type."""
    ours = {entry.name: entry for entry in entries.values() if entry.part in ("", "values")}
    if any(map(nn.parameter.is_lazy, (entry.value for entry in ours.values()))):
        raise ModelFileError(
            f"The model that {path} is to be loaded into has lazy modules, which have no sizes before "
            "their first run. Run it once on an input first."
        )
    if any(isinstance(e.value, Tensor) and e.value.is_meta for e in ours.values()):
        raise ModelFileError(
            f"The model that {path} is to be loaded into is on the meta device. Give it memory first, by "
            'model.to_empty(device="cpu").'
        )
    problems = [f"{name} is missing" for name in ours if name not in values]
    problems += [f"{name} is not in the model" for name in values if name not in ours]
    problems += [
        f"{name} {problem}"
        for name, entry in ours.items()
        if name in values
        for problem in _misfits(entry, values[name])
    ]
    first: dict[Any, str] = {}
    for name, entry in ours.items():
        other = first.setdefault(entry.place, name)
        if name in values and other in values and not _same(values[name], values[other]):
            problems.append(f"{name} differs from {other}, which is one with it in the model")
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(
            f"{path} is of another model: {'; '.join(problems[:3])}{more}. Pass a model that is built "
            "as the saved one was, transform included."
        )


def _misfits(entry: Entry, value: Any) -> Iterator[str]:
    """Iterate over what keeps a value of a file out of an entry of a model."""
    weight = isinstance(value, _Weight)
    if not (weight or isinstance(value, Tensor)) or not isinstance(entry.value, Tensor):
        return  # extra state may be of any kind; its module says whether it takes it
    shape = value.packed.shape if weight else tuple(value.shape)
    dtype = (value.values if weight else value).dtype
    if shape != entry.shape and not _loads_itself(entry.module):
        yield f"has the shape {shape}, in the model {entry.shape}"
    elif not torch.can_cast(dtype, entry.value.dtype):
        yield f"has the type {dtype}, in the model {entry.value.dtype}"
    elif weight and (entry.module is None or entry.attribute not in _weights_of(entry.module)):
        yield "is sparse, and no parameter of the model"


def _weights_of(module: nn.Module) -> Collection[str]:
    return ("weight",) if isinstance(module, SparseLayer) else module._parameters.keys()


def _same(value: Any, other: Any) -> bool:
    """Tell whether two tensors or weights of a file are equal."""
    if value is other:
        return True
    one, two = (v.dense() if isinstance(v, _Weight) else v for v in (value, other))
    return type(value) is type(other) and torch.equal(one, two)


def _loads_itself(module: nn.Module | None) -> bool:
    """Tell whether a module, or a hook, has its own way of loading, which may change shapes or fail."""
    if module is None:
        return True
    methods = (type(module)._load_from_state_dict, type(module).set_extra_state)
    own = any(method.__module__.partition(".")[0] not in ("torch", "isoflop") for method in methods)
    return own or bool(
        module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks  # pyright: ignore
    )


@torch.no_grad()
def _fill(path: Path, model: nn.Module, values: Mapping[str, Any]) -> None:
    """Load what a file has into a model by its `load_state_dict`, after checking that this fits.

    Masks of the model give way to those of the file. Compressed layers stay compressed.
    """
    entries = entries_of(model)
    _check_fit(path, values, entries)
    masks = [(module, parameter, mask) for _, module, parameter, mask in named_masks(model)]
    before = None
    if any(map(_loads_itself, model.modules())):
        before = {
            key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for key, value in model.state_dict().items()
        }
    try:
        for entry in entries.values():
            value = values[entry.name]
            if entry.module is None or entry.part:
                continue
            if isinstance(value, _Weight):
                mask = value.mask().to(entry.value.device)
                set_mask(entry.module, entry.attribute, distribute_like(mask, entry.value))
            else:
                remove_mask(entry.module, entry.attribute)
        model.load_state_dict(_state(entries_of(model), values))
    except Exception as error:  # modules may raise any when they take up their state
        if before is not None:
            for _, module, parameter, _ in list(named_masks(model)):
                remove_mask(module, parameter)
            for module, parameter, mask in masks:
                set_mask(module, parameter, mask)
            with contextlib.suppress(Exception):  # the same module refuses once more
                model.load_state_dict(before, strict=False)
        raise ModelFileError(
            f"{type(model).__name__} refuses the state in {path}: {error}. Pass a model that is built as "
            "the saved one was, transform included."
        ) from error


def _state(entries: Mapping[str, Entry], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file has as the state dict of a model that has these entries."""
    state: dict[str, Any] = {}
    layers: dict[tuple[str, SparseLayer], dict[str, Any]] = {}
    for key, entry in entries.items():
        value, layer = values[entry.name], entry.layer
        if layer is not None:
            known = layers.get((entry.name, layer))
            if known is None:
                known = layers[entry.name, layer] = _compressed_state(layer, value)
            state[key] = known[entry.part]
            continue
        if isinstance(value, _Weight):
            value = value.mask() if entry.part == MASK else value.dense()
        state[key] = distribute_like(value, entry.value) if isinstance(value, Tensor) else value
    return state


def _compressed_state(layer: SparseLayer, value: Any) -> dict[str, Any]:
    """Return the state of a compressed layer whose weight is that of a file, sparse or dense."""
    if isinstance(value, _Weight):
        weight, mask = value.dense(), value.mask()
    else:
        weight, mask = value, torch.ones_like(value, dtype=torch.bool)
    if layer.fan_in_fan_out:
        weight, mask = weight.t(), mask.t()
    dense = layer.to_dense()
    dense.get_parameter("weight").copy_(weight)
    sparse = sparse_layer(dense, mask)
    assert sparse is not None
    return sparse.state_dict()


def _compressed(model: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """Compress the layers of a model that were when it was saved."""
    new: dict[nn.Module, nn.Module] = {}
    for name, module, parameter, mask in named_masks(model):
        value = values[name]
        if value.packed.storage == "compressed":
            sparse = sparse_layer(module, mask) if parameter == "weight" else None
            if sparse is None:
                raise ModelFileError(f"{name!r} was compressed, which {module} cannot be.")
            new[module] = sparse
    return replace_modules(model, new)
