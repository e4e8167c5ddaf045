"""Weights as matrices, and matrices as tiles.

A weight of shape (output, input, *kernel) is read as one matrix output × input for each position of
the kernel. Consecutive rows and columns of these are what hardware finds next to each other: a
convolution in channels-last layout multiplies, kernel position by kernel position, along the input
channels.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from isoflop.errors import IsoflopError


@dataclass(frozen=True)
class Region:
    """A part of the matrices that equal tiles cover without remainder.

    Attributes:
        rows: The rows of the part, in each matrix.
        columns: The columns of the part, in each matrix.
        tile: Rows and columns of one tile.
        num_tiles: Number of tiles in all matrices together.
    """

    rows: slice
    columns: slice
    tile: tuple[int, int]
    num_tiles: int


def regions(shape: tuple[int, ...], rows: int, columns: int) -> list[Region]:
    """Cut a weight of `shape` into tiles of `rows` × `columns`, and smaller ones at ragged edges.

    Returns:
        One region per size of tile: the full tiles, then the right edge, the bottom edge and the
        corner, as far as they exist.

    Raises:
        IsoflopError: The weight has fewer than two dimensions.
    """
    if len(shape) < 2:
        raise IsoflopError(
            f"A weight of shape {tuple(shape)} has no input and output dimension to form groups "
            "along. Use the pattern 'unstructured' for it."
        )
    matrices = math.prod(shape[2:])
    return [
        Region(row, column, (height, width), matrices * _fit(row, height) * _fit(column, width))
        for row, height in _parts(shape[0], rows)
        for column, width in _parts(shape[1], columns)
    ]


def matrices_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (kernel, output, input), the shape of what `to_matrices` returns."""
    return math.prod(shape[2:]), shape[0], shape[1]


def to_matrices(weight: Tensor) -> Tensor:
    """Return `weight` (output, input, *kernel) as a view or copy (kernel, output, input)."""
    return weight.flatten(2).permute(2, 0, 1) if weight.dim() > 2 else weight[None]


def from_matrices(matrices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo `to_matrices`; the result is contiguous."""
    return matrices.permute(1, 2, 0).reshape(shape).contiguous()


def cut(matrices: Tensor, region: Region) -> Tensor:
    """Return the tiles of `region`, shaped (tile, rows, columns)."""
    height, width = region.tile
    part = matrices[:, region.rows, region.columns]
    part = part.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return part.transpose(2, 3).reshape(-1, height, width)


def paste(matrices: Tensor, region: Region, tiles: Tensor) -> None:
    """Write the tiles of `region`, shaped (tile, rows, columns) or broadcast to it."""
    height, width = region.tile
    part = matrices[:, region.rows, region.columns]
    shape = (len(part), part.shape[1] // height, part.shape[2] // width, height, width)
    tiles = tiles.expand(region.num_tiles, height, width).reshape(shape)
    part.copy_(tiles.transpose(2, 3).reshape(part.shape))


def _parts(size: int, step: int) -> list[tuple[slice, int]]:
    """Return the part of `size` that `step` divides and the remainder, each with its step."""
    whole = size - size % step
    parts = [(slice(0, whole), step), (slice(whole, size), size - whole)]
    return [(part, length) for part, length in parts if part.start < part.stop]


def _fit(part: slice, length: int) -> int:
    return (part.stop - part.start) // length
