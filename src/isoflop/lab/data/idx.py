"""The idx format of MNIST and its relatives, plain or gzipped."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isoflop.errors import DataError

# Magic numbers: type 8 (unsigned byte) in the third byte, the number of dimensions in the fourth.
IMAGES, LABELS = 0x0803, 0x0801


def read_idx(folder: Path, name: str, magic: int, hint: str) -> Tensor:
    """Read one idx file of bytes: a big-endian header, then the items.

    Args:
        folder: Where the file lies.
        name: Its name, without `.gz`.
        magic: The number that it must start with, `IMAGES` or `LABELS`.
        hint: What to tell the user if it is missing or damaged.

    Raises:
        DataError: The file is missing, of another format, or truncated.
    """
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        if plain.is_file():
            path, content = plain, plain.read_bytes()
        elif packed.is_file():
            path = packed
            with gzip.open(packed) as file:
                content = file.read()
        else:
            raise DataError(f"{folder} lacks {name}. {hint}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{folder / name} cannot be read: {error}. {hint}") from error
    dims = magic & 0xFF
    header = 4 + 4 * dims
    if len(content) < header or struct.unpack_from(">i", content)[0] != magic:
        raise DataError(f"{path} is no idx file of the magic number {magic}. {hint}")
    shape = struct.unpack_from(f">{dims}i", content, 4)
    if min(shape) < 0 or len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path} announces {'×'.join(map(str, shape))} bytes but holds "
            f"{len(content) - header}: it is truncated or damaged. {hint}"
        )
    items = np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    return torch.from_numpy(items.copy())
