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
    table of sines and cosines of positions, or of one of them, or of complex numbers, is made anew
    from its frequencies, also one whose halves are of the rows and of the columns of a grid. What is
    the same for every channel, or for every few, such as the filters of a blur, is so for more
    channels. An identity stays one. Dimensions of size 1 may be anywhere.

    Args:
        old: The content in the dense model.
        shape: The new shape.

    Returns:
        A tensor of that shape, or None if the content is none of these.
    """
    value = constant(old)
    if value is not None:
        return torch.full(shape, value, dtype=old.dtype)
    if old.is_meta:
        return None
    if old.is_complex():
        real, imaginary = resized(old.real, shape), resized(old.imag, shape)
        return None if real is None or imaginary is None else torch.complex(real, imaginary)
    if not old.dtype.is_floating_point:
        return None
    if old.ndim == 2 == len(shape) and shape[0] == shape[1] and _is_identity(old):
        return torch.eye(shape[0], dtype=old.dtype)
    sizes = [pair for pair in zip(old.shape, shape, strict=True) if pair != (1, 1)]
    values = old.detach().double().cpu().numpy().reshape([before for before, _ in sizes])
    new = None
    if len(sizes) == 1:
        new = _more_frequencies(values, sizes[0][1])
    elif len(sizes) == 2 and sizes[0][0] == sizes[0][1]:
        new = _wider_table(values, sizes[1][1])
    elif len(sizes) == 2 and sizes[1][0] == sizes[1][1]:
        new = _wider_table(values.T, sizes[0][1])
        new = None if new is None else np.ascontiguousarray(new.T)
    # Last, as tables of frequencies may have each twice.
    return (
        _repeated(old, shape) if new is None else torch.from_numpy(new).to(old.dtype).reshape(shape)
    )


def _repeated(old: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return `old` with more of the slices that it repeats, or None if it repeats none."""
    if old.ndim < 2 or old.ndim != len(shape):
        return None
    for dim, (before, after) in enumerate(zip(old.shape, shape, strict=True)):
        if before != after:
            period = _period(old, dim)
            if period == before or after % period:
                return None
            times = [after // period if d == dim else 1 for d in range(old.ndim)]
            old = old.narrow(dim, 0, period).repeat(*times)
    return old.clone()


def _period(old: Tensor, dim: int) -> int:
    """Return after how many slices of a dimension they repeat; the whole size if they do not."""
    size = old.shape[dim]
    for period in range(1, size // 2 + 1):
        later = old.narrow(dim, period, size - period)
        if size % period == 0 and torch.equal(old.narrow(dim, 0, size - period), later):
            return period
    return size


def _is_identity(old: Tensor) -> bool:
    return old.shape[0] == old.shape[1] and torch.equal(
        old, torch.eye(len(old), dtype=old.dtype, device=old.device)
    )


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


def _wider_table(old: np.ndarray, size: int) -> np.ndarray | None:
    """Recognise a table of sines, of cosines, or of both, (positions, width), and make it wider."""
    wider = _wider_waves(old, size)
    if wider is not None:
        return wider
    # The squares of a sine and its cosine add up to one.
    amplitude = np.sqrt(2 * np.square(old[np.abs(old).sum(axis=1) > 0]).mean())
    for factor in (1.0, amplitude):
        wider = _wider_sinusoids(old / factor, size)
        if wider is not None:
            return wider * factor
    return None


def _wider_waves(old: np.ndarray, size: int) -> np.ndarray | None:
    """Recognise the cosines or the sines alone, once for each frequency or twice, and make it wider."""
    if len(old) < 3:
        return None
    positions = np.arange(len(old))[:, None]
    for wave in (np.cos, np.sin):
        frequencies = _frequencies(old, wave is np.cos)
        if not np.allclose(wave(positions * frequencies), old, atol=_TOLERANCE):
            continue
        for once, twice in _TWICE:
            if np.allclose(twice(once(frequencies)), frequencies) and size % 2 == 0:
                wider = _more_frequencies(once(frequencies), size // 2)
                return None if wider is None else wave(positions * twice(wider))
        wider = _more_frequencies(frequencies, size)
        return None if wider is None else wave(positions * wider)
    return None


def _frequencies(old: np.ndarray, cosines: bool) -> np.ndarray:
    """Return the frequencies of a table of cosines, or of sines, (positions, frequencies).

    What a position tells is exact to a part of its angle, so that positions further on tell more; those
    before say which of the angles of the same cosine it is.
    """
    angles = (np.arccos if cosines else np.arcsin)(np.clip(old, -1, 1))
    frequencies, row = angles[1], 1
    while 2 * row < len(old):
        row *= 2
        mirrored = -angles[row] if cosines else np.pi - angles[row]
        near = [
            angle + 2 * np.pi * np.round((row * frequencies - angle) / (2 * np.pi))
            for angle in (angles[row], mirrored)
        ]
        other = np.abs(near[1] - row * frequencies) < np.abs(near[0] - row * frequencies)
        flat = np.abs(old[row]) > 0.9999  # where a cosine hardly depends on its angle
        frequencies = np.where(flat, frequencies, np.where(other, near[1], near[0]) / row)
    return frequencies


_TWICE: tuple[
    tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]], ...
] = (
    (lambda values: values[: len(values) // 2], lambda values: np.tile(values, 2)),
    (lambda values: values[0::2], lambda values: np.repeat(values, 2)),
)
"""How tables have every frequency twice: how to get each once, and how to go back."""


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
