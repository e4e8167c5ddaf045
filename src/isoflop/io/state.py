"""The state dict of a model, and what of it belongs to sparse weights."""

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.masks import get_mask, masked_by
from isoflop.sparsity.weights.sharding import is_sharded
from isoflop.surgery import check_module, is_compiled

_ORIGINAL = "_orig_mod"
"""What a compiled module calls the module that it was made of."""

MASK = "mask"
"""The part of a weight that is its mask."""


@dataclass(frozen=True)
class Entry:
    """One entry of a state dict.

    Attributes:
        name: What a file calls it: its key without what `torch.compile` adds; masks, and values and
            index of compressed layers, go by the name of the dense weight.
        part: ``""``; `MASK` for a mask; its name there for an entry of a compressed layer.
        value: The tensor, or other data.
        place: Where the tensor lies; tensors of one place are one. None if that says nothing.
        module: The module whose parameter or buffer it is; None if a hook, say, has made it.
        attribute: What that module calls it; of masks and of parts of compressed layers the weight.
    """

    name: str
    part: str
    value: Any
    place: Hashable
    module: nn.Module | None
    attribute: str

    @property
    def layer(self) -> SparseLayer | None:
        """The compressed layer of whose weight it is a part."""
        return self.module if self.part and isinstance(self.module, SparseLayer) else None

    @property
    def mask(self) -> Tensor | None:
        """The mask of the weight, on all workers' parts alike; None if it is dense."""
        if self.layer is not None:
            return self.layer.mask()
        return None if self.module is None else get_mask(self.module, self.attribute)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the tensor, zeros included; None if it is none."""
        if self.layer is not None:
            return self.layer.dense_shape
        return tuple(self.value.shape) if isinstance(self.value, Tensor) else None


def entries_of(model: nn.Module) -> dict[str, Entry]:
    """Return the entries of the state dict of a model by their keys."""
    state = model.state_dict()
    owners = _owners(model)
    owned = {key: owners[p] for key, v in state.items() if (p := _place(key, v)) in owners}
    weights = {owner: key for key, owner in reversed(owned.items())}
    compiled = _compiled(model)
    found: dict[str, Entry] = {}
    for key, value in state.items():
        module, attribute = owned.get(key, (None, ""))
        name, part = key, ""
        if isinstance(module, SparseLayer) and attribute == "values":
            name, part, attribute = _prefix(key, "values") + "weight", "values", "weight"
        elif module is not None:
            weight = masked_by(module, attribute)
            if weight is not None and (module, weight) in weights:
                name, part, attribute = weights[module, weight], MASK, weight
        found[key] = Entry(
            _plain(name, compiled), part, value, _place(key, value), module, attribute
        )
    for key, entry in list(found.items()):
        if entry.layer is not None:  # its index, which no module owns
            for part in entry.layer.state_dict().keys() - {"bias"}:
                other = _prefix(key, "values") + part
                if other in state:
                    found[other] = dataclasses.replace(
                        entry, part=part, value=state[other], place=other
                    )
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of what parallel training and `torch.compile` wrap around it.

    Raises:
        IsoflopError: It is no model.
    """
    check_module(model)
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif is_compiled(model):
            model = model.get_submodule(_ORIGINAL)
        else:
            return model


def _compiled(model: nn.Module) -> list[str]:
    """Return what keys of parts that `torch.compile` has compiled begin with, inner parts first."""
    modules = model.named_modules(remove_duplicate=False)
    return [f"{path}.{_ORIGINAL}." for path, module in modules if is_compiled(module)][::-1]


def _plain(key: str, compiled: list[str]) -> str:
    """Return a key without what `torch.compile` adds to those of a part of the model."""
    for start in compiled:
        if key.startswith(start):
            key = start.removesuffix(f"{_ORIGINAL}.") + key.removeprefix(start)
    return key


def _prefix(key: str, end: str) -> str:
    return key[: len(key) - len(end)]


def _owners(model: nn.Module) -> dict[Hashable, tuple[nn.Module, str]]:
    """Return, by place, the module that has a parameter or buffer there, and its name."""
    found: dict[Hashable, tuple[nn.Module, str]] = {}
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                place = _place(f"{path}.{name}" if path else name, tensor)
                if place not in found or get_mask(module, name) is not None:
                    found[place] = module, name
    return found


def _place(key: str, value: Any) -> Hashable:
    """Return what two tensors share if they are one; that is the key where nothing else tells."""
    sharded = isinstance(value, Tensor) and is_sharded(value)
    local = value.to_local() if sharded else value  # pyright: ignore[reportAttributeAccessIssue]
    ordinary = type(local) in (Tensor, nn.Parameter) and local.layout is torch.strided
    if not ordinary or local.is_nested or local.is_meta or not local.numel():
        return key
    return local.data_ptr(), tuple(value.shape), local.stride(), local.dtype
