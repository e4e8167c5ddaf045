"""Sparse weights as tensors of a file: the values, and the positions or a bit mask."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from isoflop.errors import ModelFileError
from isoflop.io.encoding import as_bytes, from_bytes

VALUES = ".values"
POSITIONS = ".positions"
BITS = ".bits"


@dataclass(frozen=True)
class PackedWeight:
    """What a file says of a sparse weight.

    Attributes:
        shape: Shape of the dense weight, as the dense layer stores it.
        storage: How the weight was stored in the model.
        dtype: Its type, where the file has the values as bytes.
    """

    shape: tuple[int, ...]
    storage: Literal["masked", "compressed"]
    dtype: str | None = None

    @classmethod
    def from_dict(cls, data: Any) -> "PackedWeight":
        """Read back what `to_dict` returned."""
        shape, storage = tuple(data["shape"]), data["storage"]
        sizes = all(isinstance(size, int) and size >= 0 for size in shape)
        if not sizes or storage not in ("masked", "compressed"):
            raise ValueError(f"{data} describes no weight")
        return cls(shape, storage, data.get("dtype"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def pack(name: str, weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a sparse weight: its values, and whichever of the two is smaller.

    ``NAME.values`` has the values in ascending order of their positions in the flat weight,
    ``NAME.positions`` these positions, and ``NAME.bits`` the mask, eight positions a byte, the first
    in the highest bit.

    Args:
        name: Full name of the weight.
        weight: The dense weight.
        mask: Boolean, shaped like it.
    """
    flat = mask.flatten()
    positions = flat.nonzero().flatten()
    kind = torch.int32 if len(flat) < 2**31 else torch.int64
    values = {name + VALUES: as_bytes(weight.detach().flatten()[positions])}
    if len(positions) * kind.itemsize < len(flat) / 8:
        return values | {name + POSITIONS: positions.to(kind)}
    bits = torch.from_numpy(np.packbits(flat.numpy()))
    return values | {name + BITS: bits}


def unpack(name: str, packed: PackedWeight, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return values, (nnz,), and their ascending positions, int64, of a weight that `pack` packed.

    Raises:
        ModelFileError: The tensors are not those of such a weight.
    """
    values = tensors.get(name + VALUES)
    numel = int(np.prod(packed.shape, dtype=np.int64))
    positions = _positions(name, numel, tensors)
    if values is not None and positions is not None and packed.dtype is not None:
        values = from_bytes(values, packed.dtype, positions.shape)
    if (
        values is None
        or positions is None
        or values.ndim != 1
        or len(values) != len(positions)
        or not _ascend(positions, numel)
    ):
        raise ModelFileError(f"The weight {name!r} in the file is damaged. Write the file anew.")
    return values, positions


def _positions(name: str, numel: int, tensors: dict[str, Tensor]) -> Tensor | None:
    positions, bits = tensors.get(name + POSITIONS), tensors.get(name + BITS)
    if positions is not None and positions.ndim == 1:
        return positions.long()
    if bits is None or bits.dtype != torch.uint8 or bits.shape != (-(-numel // 8),):
        return None
    flags = torch.from_numpy(np.unpackbits(bits.numpy()))
    return None if flags[numel:].any() else flags.nonzero().flatten()


def _ascend(positions: Tensor, numel: int) -> bool:
    if not len(positions):
        return True
    inside = int(positions[0]) >= 0 and int(positions[-1]) < numel
    return inside and bool((positions.diff() > 0).all())
