"""Pictures as tensors, in colour or grey."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isoflop.lab.data.images.decode import decode
from isoflop.optional import require

_WHOLE = 2**31


def read_picture(path: Path, channels: int) -> Tensor:
    """Read a picture at its full size.

    Args:
        path: The file.
        channels: 3 for RGB, 1 for grey.

    Returns:
        Bytes of shape (channels, height, width).

    Raises:
        Exception: The file is missing or no picture; many kinds.
    """
    if channels == 3:
        pixels = decode(path.read_bytes(), _WHOLE)
        # Arrays of Pillow are read-only, of which PyTorch warns.
        pixels = pixels if pixels.flags.writeable else pixels.copy()
        return torch.from_numpy(pixels).permute(2, 0, 1)
    with require("PIL.Image", "vision").open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("L"))).unsqueeze(0)


def read_labels(path: Path) -> Tensor:
    """Read a picture whose pixels are numbers.

    Returns:
        Bytes of shape (height, width).

    Raises:
        Exception: The file is missing, no picture, or one of colours; many kinds.
    """
    with require("PIL.Image", "vision").open(path) as picture:
        if picture.mode not in ("L", "P"):
            raise ValueError(f"its pixels are no numbers of a byte, but {picture.mode}")
        return torch.from_numpy(np.array(picture))
