"""`isoflop.save` and `isoflop.load`: a trained model in one safetensors file."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from isoflop.deploy.packing import BITS, POSITIONS, VALUES, PackedWeight, pack, unpack
from isoflop.deploy.source import LIBRARIES, ModelSource
from isoflop.errors import IsoflopError, ModelFileError, PlanError
from isoflop.files import write_bytes
from isoflop.kernels.candidates import sparse_layer
from isoflop.kernels.layers import SparseLayer
from isoflop.masks import SUFFIX, get_mask, remove_mask, set_mask
from isoflop.plan import Plan
from isoflop.surgery import replace_modules

FORMAT_VERSION = 1

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
        model: The model; with training code in its modules or without, only tensors are saved.
        path: The file, by custom with the suffix `.safetensors`.
        plan: The plan of the transform that made the model.
        source: How the dense model was built, or just its spec, such as ``"timm:resnet18"``. With
            it, and with the plan if there was a transform, `load` builds the model anew.

    Raises:
        IsoflopError: The state of the model is not all tensors with values, or the folder is missing.
        PlanError: The plan is not that of the model.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise IsoflopError(f"{path} cannot be written: there is no folder {path.parent}.")
    if isinstance(source, str):
        source = ModelSource(spec=source)
    contents = _contents(model)
    if plan is not None:
        _check_plan(plan, contents)
    description = {
        "format_version": FORMAT_VERSION,
        "weights": {name: packed.to_dict() for name, packed in contents.packed.items()},
        "aliases": contents.aliases,
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
        ModelFileError: The file is missing, damaged, not written by `save`, or of another model.
            The model has not been changed then.
    """
    path = Path(path)
    if model is None:
        model, plan, _ = read_model(path)
        return model, plan
    contents, plan, _ = _read(path)
    return _filled(path, model, contents, compress=False), plan


def read_model(path: Path) -> tuple[nn.Module, Plan | None, ModelSource]:
    """Build the model of a file anew, as `load` does, and say how.

    Returns:
        The model, its plan, and its source.
    """
    contents, plan, source = _read(path)
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
    return _filled(path, source.build(plan), contents, compress=True), plan, source


@dataclass(frozen=True)
class _Contents:
    """The state of a model as a file has it.

    Attributes:
        tensors: All tensors, those of packed weights included.
        packed: The sparse weights, by full name.
        aliases: Further names of tensors and weights, with the name under which they are.
    """

    tensors: dict[str, Tensor]
    packed: dict[str, PackedWeight]
    aliases: dict[str, str]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter and buffer, sparse weights with their zeros."""
        parts = {name + end for name in self.packed for end in (VALUES, POSITIONS, BITS)}
        shapes = {name: tuple(t.shape) for name, t in self.tensors.items() if name not in parts}
        shapes |= {name: packed.shape for name, packed in self.packed.items()}
        return shapes | {name: shapes[first] for name, first in self.aliases.items()}


def _items(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Iterate over `(name, module, attribute, value)` of the state of a model.

    The values of a compressed layer go by the name of the dense weight; its index, and the masks of
    masked layers, are left out.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, value in model.state_dict(keep_vars=True).items():
        path, _, attribute = name.rpartition(".")
        module = modules[path]
        if isinstance(module, SparseLayer) and attribute != "bias":
            if attribute == "values":
                yield f"{path}.weight" if path else "weight", module, "weight", value
        elif get_mask(module, attribute.removesuffix(SUFFIX)) is not value:
            yield name, module, attribute, value


def _contents(model: nn.Module) -> _Contents:
    """Return the state of a model, each tensor once, sparse weights packed."""
    seen: dict[int, str] = {}
    contents = _Contents({}, {}, {})
    for name, module, attribute, value in _items(model):
        if not isinstance(value, Tensor) or value.is_meta:
            what = "on the meta device" if isinstance(value, Tensor) else "no tensor"
            raise IsoflopError(
                f"{name!r} of the model is {what}, and files hold tensors with values only."
            )
        if id(value) in seen:
            contents.aliases[name] = seen[id(value)]
            continue
        seen[id(value)] = name
        if isinstance(module, SparseLayer) and attribute == "weight":
            weight, mask, storage = module.dense_weight(), module.mask(), "compressed"
        else:
            weight, mask, storage = value, get_mask(module, attribute), "masked"
        if mask is None:
            contents.tensors[name] = value.detach().cpu().contiguous().clone()
        else:
            contents.packed[name] = PackedWeight(tuple(weight.shape), storage)
            contents.tensors.update(pack(name, weight.cpu(), mask.cpu()))
    return contents


def _check_plan(plan: Plan, contents: _Contents) -> None:
    shapes = contents.shapes()
    for layer in plan.layers:
        if shapes.get(layer.parameter) != layer.shape:
            raise PlanError(
                f"The plan gives {layer.parameter!r} the shape {layer.shape}, but the model has "
                f"{shapes.get(layer.parameter)}. Save the model with its own plan."
            )


def _read(path: Path) -> tuple[_Contents, Plan | None, ModelSource | None]:
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
        raise ModelFileError(f"{path} is no safetensors file, or a damaged one: {error}") from error
    try:
        description = json.loads(metadata[_KEY])
        version = description["format_version"]
        if version != FORMAT_VERSION:
            raise ModelFileError(
                f"{path} has format {version}, and this version of isoflop reads {FORMAT_VERSION}."
            )
        packed = {n: PackedWeight.from_dict(d) for n, d in description["weights"].items()}
        contents = _Contents(tensors, packed, dict(description["aliases"]))
        contents.shapes()  # raises if an alias leads nowhere
        plan, source = description["plan"], description["source"]
        return (
            contents,
            None if plan is None else Plan.from_dict(plan),
            None if source is None else ModelSource.from_dict(source),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, IsoflopError):
            raise
        raise ModelFileError(f"The description in {path} is damaged: {error!r}.") from error


def _check_fit(path: Path, contents: _Contents, model: nn.Module) -> None:
    """Raise unless the file has every parameter and buffer of the model, in its shape."""
    theirs = contents.shapes()
    ours = {
        name: module.dense_shape if _is_compressed(module, attribute) else tuple(value.shape)
        for name, module, attribute, value in _items(model)
    }
    problems = [f"{name} is missing" for name in ours if name not in theirs]
    problems += [f"{name} is not in the model" for name in theirs if name not in ours]
    problems += [
        f"{name} has the shape {theirs[name]}, in the model {shape}"
        for name, shape in ours.items()
        if name in theirs and theirs[name] != shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(
            f"{path} is of another model: {'; '.join(problems[:3])}{more}. Pass a model that is built "
            "as the saved one was, transform included."
        )


def _filled(path: Path, model: nn.Module, contents: _Contents, *, compress: bool) -> nn.Module:
    """Return the model with the state of a file, after checking that this fits."""
    _check_fit(path, contents, model)
    weights = {
        name: unpack(name, packed, contents.tensors) for name, packed in contents.packed.items()
    }
    return _fill(model, contents, weights, compress=compress)


@torch.no_grad()
def _fill(
    model: nn.Module,
    contents: _Contents,
    weights: Mapping[str, tuple[Tensor, Tensor]],
    *,
    compress: bool,
) -> nn.Module:
    """Set the state of a model that fits; compress the layers that were, if so wanted."""
    new: dict[nn.Module, nn.Module] = {}
    for name, module, attribute, value in list(_items(model)):
        first = contents.aliases.get(name, name)
        compressed = _is_compressed(module, attribute)
        if first not in contents.packed:
            tensor = contents.tensors[first]
            if compressed:
                _fill_compressed(module, tensor, torch.ones_like(tensor, dtype=torch.bool))
            else:
                value.copy_(tensor)
                remove_mask(module, attribute)
            continue
        packed = contents.packed[first]
        values, positions = weights[first]
        dense, mask = values.new_zeros(packed.shape), torch.zeros(packed.shape, dtype=torch.bool)
        dense.view(-1)[positions] = values
        mask.view(-1)[positions] = True
        if compressed:
            _fill_compressed(module, dense, mask)
            continue
        value.copy_(dense)
        set_mask(module, attribute, mask.to(value.device))
        if compress and packed.storage == "compressed" and module not in new:
            sparse = sparse_layer(module, mask)
            if sparse is None:
                raise ModelFileError(f"{name!r} was compressed, which {module} cannot be.")
            new[module] = sparse
    return replace_modules(model, new)


def _is_compressed(module: nn.Module, attribute: str) -> TypeGuard[SparseLayer]:
    return isinstance(module, SparseLayer) and attribute == "weight"


def _fill_compressed(layer: SparseLayer, weight: Tensor, mask: Tensor) -> None:
    if layer.flipped:
        weight, mask = weight.t(), mask.t()
    dense = layer.to_dense()
    dense.get_parameter("weight").copy_(weight)
    sparse = sparse_layer(dense, mask)
    assert sparse is not None
    layer.load_state_dict(sparse.state_dict())
