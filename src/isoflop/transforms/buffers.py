"""The content of a buffer whose size is a width, at another width."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_TOLERANCE = 1e-3
"""How far a table may be from sines and cosines; half precision is as far."""


def resized(old: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return the content of a buffer at another size, where the content says what it is there.

    A constant stays one. Frequencies, such as those of rotary position embeddings, run over the
    same range in more steps: between those that there are, they are interpolated geometrically. A
    table of sines and cosines of positions is made anew from its frequencies, also one whose halves
    are of the rows and of the columns of a grid. What is the same for every channel, such as the
    filter of a blur, is so for more channels. Dimensions of size 1 may be anywhere.

    Args:
        old: The content in the dense model.
        shape: The new shape.

    Returns:
        A tensor of that shape, or None if the content is none of these.
    """
    value = constant(old)
    if value is not None:
        return torch.full(shape, value, dtype=old.dtype)
    if old.is_meta or not old.dtype.is_floating_point:
        return None
    repeated = _repeated(old, shape)
    if repeated is not None:
        return repeated
    sizes = [pair for pair in zip(old.shape, shape, strict=True) if pair != (1, 1)]
    values = old.detach().double().cpu().numpy().reshape([before for before, _ in sizes])
    new = None
    if len(sizes) == 1:
        new = _more_frequencies(values, sizes[0][1])
    elif len(sizes) == 2 and sizes[0][0] == sizes[0][1]:
        new = _wider_sinusoids(values, sizes[1][1])
    return None if new is None else torch.from_numpy(new).to(old.dtype).reshape(shape)


def _repeated(old: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return `old` with more of the slices of which all are equal, or None if they are not."""
    if old.ndim < 2 or old.ndim != len(shape):
        return None
    for dim, (before, after) in enumerate(zip(old.shape, shape, strict=True)):
        if before != after:
            first = old.narrow(dim, 0, 1)
            if not bool((old == first).all()):
                return None
            old = first.expand(*(after if d == dim else -1 for d in range(old.ndim)))
    return old.clone()


def constant(tensor: Tensor | None) -> float | None:
    """Return the value that all elements of a tensor share, or None."""
    if tensor is None or tensor.is_meta or not tensor.numel():
        return None
    first = tensor.flatten()[0]
    return first.item() if bool((tensor == first).all()) else None


def _more_frequencies(old: np.ndarray, size: int) -> np.ndarray | None:
    """Resample falling positive values; zeros at the end stay that share of them."""
    used = int(np.count_nonzero(old))
    if used < 3 or not (old[:used] > 0).all():
        return None
    logarithms = np.log(old[:used])
    steps = np.diff(logarithms)
    if not (steps <= 1e-9).all():
        return None  # rising values may be indices
    count = round(used * size / len(old))
    where = np.arange(count) * used / count
    # Beyond the last value, which the finer steps pass, the last step goes on.
    extended = np.append(logarithms, logarithms[-1] + steps[-1])
    return np.append(
        np.exp(np.interp(where, np.arange(used + 1), extended)), np.zeros(size - count)
    )


def _wider_sinusoids(old: np.ndarray, size: int) -> np.ndarray | None:
    """Recognise a table of sines and cosines, (positions, width), and make it wider."""
    if old.shape[1] % 2 or size % 2:
        return None
    wider = _wider_positions(old, size)
    if wider is None and old.shape[1] % 4 == 0 and size % 4 == 0:
        halves = [_wider_grid(half, size // 2) for half in np.split(old, 2, axis=1)]
        if halves[0] is not None and halves[1] is not None:
            return np.concatenate([halves[0], halves[1]], axis=1)
    return wider


def _wider_grid(old: np.ndarray, size: int) -> np.ndarray | None:
    """Make wider a table that repeats the sinusoids of each position of one side of a grid."""
    _, first, which = np.unique(old, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by where they are first
    wider = _wider_positions(old[first[order]], size)
    return None if wider is None else wider[np.argsort(order)[which.reshape(-1)]]


def _wider_positions(old: np.ndarray, size: int) -> np.ndarray | None:
    rows = np.flatnonzero(np.abs(old).sum(axis=1))  # those of padding are zero
    if len(rows) < 3:
        return None
    for layout in _LAYOUTS:
        sines, cosines = layout(old)
        angles = np.arctan2(sines[rows], cosines[rows])
        # From one position to the next the angle grows by the frequency, of which the first is 1.
        frequencies = np.mod(angles[1] - angles[0], 2 * np.pi) / (rows[1] - rows[0])
        start = np.round(angles[0, 0] / frequencies[0]) if frequencies[0] > 0 else 0.0
        positions = start + rows - rows[0]
        if not np.allclose(_sinusoids(positions, frequencies, layout), old[rows], atol=_TOLERANCE):
            continue
        wider = _more_frequencies(frequencies, size // 2)
        if wider is None:
            return None
        new = np.zeros((old.shape[0], size))
        new[rows] = _sinusoids(positions, wider, layout)
        return new
    return None


_LAYOUTS: tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], ...] = (
    lambda table: (table[:, : table.shape[1] // 2], table[:, table.shape[1] // 2 :]),
    lambda table: (table[:, table.shape[1] // 2 :], table[:, : table.shape[1] // 2]),
    lambda table: (table[:, 0::2], table[:, 1::2]),
)
"""Where tables have their sines and their cosines, as views."""


def _sinusoids(
    positions: np.ndarray,
    frequencies: np.ndarray,
    layout: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    angles = positions[:, None] * frequencies
    table = np.empty((len(positions), 2 * len(frequencies)))
    sines, cosines = layout(table)
    sines[:], cosines[:] = np.sin(angles), np.cos(angles)
    return table
