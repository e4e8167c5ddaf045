"""Entries of a state dict as tensors of a safetensors file and plain data: no code, ever."""

import base64
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from isoflop.sparsity.weights.sharding import full_tensor

_DTYPES = {
    torch.bool,
    *(torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    *(torch.uint64, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
}
"""Types that every version of safetensors has; others are written as bytes."""

_METADATA = "__metadata__"
"""What no tensor of a safetensors file may be called."""

_SPARSE = {
    torch.sparse_coo: ("indices", "values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
"""The parts of sparse tensors, by layout."""


class ForeignValueError(Exception):
    """What a file cannot hold; the message says what it is."""


def encode(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as data that JSON knows; the tensors in it go to `tensors`.

    Args:
        name: Name of the value; the tensor, if it is one, has the same.
        value: A tensor, or numbers, texts, bytes and None, with lists, tuples and dicts of all these.
        tensors: Tensors of the file by name, to which those of `value` are added.

    Raises:
        ForeignValueError: It is, or holds, something else; the message says what.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return _encode_tensor(name, value, tensors)
    if type(value) is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if type(value) in (list, tuple):
        items = [encode(f"{name}.{i}", item, tensors) for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) in (dict, OrderedDict) and all(
        type(key) in (bool, int, float, str) for key in value
    ):
        return {
            "dict": [[key, encode(f"{name}.{key}", item, tensors)] for key, item in value.items()]
        }
    if isinstance(value, torch.dtype) and str(value).startswith("torch.q"):
        raise ForeignValueError(f"a quantised type, {value}")
    raise ForeignValueError(f"a {type(value).__name__}")


def decode(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `encode` made `data` of.

    Raises:
        KeyError, TypeError, ValueError: The data or the tensors are damaged.
    """
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items() if len(data) == 1 else (("tensor", data["tensor"]),)
    if kind == "tensor":
        return _decode_tensor(data, tensors)
    if kind == "bytes":
        return base64.b64decode(content, validate=True)
    if kind == "dict":
        return {key: decode(item, tensors) for key, item in content}
    return {"list": list, "tuple": tuple}[kind](decode(item, tensors) for item in content)


def tensors_in(data: Any) -> set[str]:
    """Return the names of the tensors that `encode` made for `data`."""
    if isinstance(data, list):
        return set().union(*map(tensors_in, data))
    if not isinstance(data, dict):
        return set()
    own = {data["tensor"]} if isinstance(data.get("tensor"), str) else set()
    return own.union(*map(tensors_in, data.values()))


def is_plain(name: str, value: Any) -> bool:
    """Tell whether a value is a tensor that a file holds as it is, by its name."""
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.layout is torch.strided
        and value.dtype in _DTYPES
        and name != _METADATA
    )


def plain(value: Tensor) -> Tensor:
    """Return all of a tensor, in memory of its own on the CPU.

    Raises:
        ForeignValueError: It has no values, or is of a kind of its own; the message says what.
    """
    if torch.nn.parameter.is_lazy(value):
        raise ForeignValueError(
            "a tensor of a lazy module, which has no values before its first run"
        )
    if value.is_meta:
        raise ForeignValueError("a tensor on the meta device")
    if value.is_quantized:
        raise ForeignValueError("a quantised tensor")
    if value.is_nested:
        raise ForeignValueError("a nested tensor")
    value = full_tensor(value.detach())
    if type(value) not in (Tensor, torch.nn.Parameter):
        raise ForeignValueError(f"a {type(value).__name__}")
    return value.resolve_conj().resolve_neg().cpu().contiguous().clone()


def _encode_tensor(name: str, value: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    while name in tensors or name == _METADATA:
        name += "_"
    data: dict[str, Any] = {"tensor": name}
    if value.layout in _SPARSE:
        if value.is_meta:
            raise ForeignValueError("a tensor on the meta device")
        value = value.detach().coalesce() if value.layout is torch.sparse_coo else value.detach()
        for part in _SPARSE[value.layout]:
            encoded = _encode_tensor(f"{name}.{part}", getattr(value, part)(), tensors)
            data[part] = encoded
        return {**data, "layout": str(value.layout), "shape": list(value.shape)}
    if value.layout is not torch.strided:
        raise ForeignValueError(f"a tensor of layout {value.layout}")
    value = plain(value)
    dtype = foreign_type(value)
    if dtype is not None:
        data |= {"dtype": dtype, "shape": list(value.shape)}
    tensors[name] = as_bytes(value)
    return data


def foreign_type(value: Tensor) -> str | None:
    """Return the type of a tensor if files do not know it, else None."""
    return None if value.dtype in _DTYPES else str(value.dtype)


def as_bytes(value: Tensor) -> Tensor:
    """Return a contiguous tensor as it is if files know its type, else its bytes, flat."""
    return value if foreign_type(value) is None else value.flatten().view(torch.uint8)


def from_bytes(value: Tensor, dtype: str, shape: Sequence[int]) -> Tensor:
    """Return the tensor that `as_bytes` made `value` of.

    Args:
        value: The bytes.
        dtype: The type, such as ``"torch.complex128"``.
        shape: The shape.
    """
    kind = getattr(torch, dtype.removeprefix("torch."))
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"{dtype} is no type")
    # In memory of its own: bytes in a file need not lie where numbers of 16 bytes may.
    made = torch.empty(math.prod(shape), dtype=kind)
    made.view(torch.uint8).copy_(value)
    return made.view(shape)


def _decode_tensor(data: dict[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    if "layout" in data:
        layout = next(layout for layout in _SPARSE if str(layout) == data["layout"])
        *indices, values = (_decode_tensor(data[part], tensors) for part in _SPARSE[layout])
        with torch.sparse.check_sparse_tensor_invariants():
            if layout is torch.sparse_coo:
                size = data["shape"]
                return torch.sparse_coo_tensor(indices[0], values, size, is_coalesced=True)
            compressed, plain_indices = indices
            return torch.sparse_compressed_tensor(
                compressed, plain_indices, values, data["shape"], layout=layout
            )
    tensor = tensors[data["tensor"]]
    return from_bytes(tensor, data["dtype"], data["shape"]) if "dtype" in data else tensor
