"""Packed sequences in runs on tensors without values: which rows there are is known from the lengths."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn.utils import rnn
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map_only

# Private names that `torch.nn.utils.rnn` calls.
_PACK: Any = torch._C._VariableFunctions._pack_padded_sequence  # pyright: ignore
_UNPACK: Any = torch._C._VariableFunctions._pad_packed_sequence  # pyright: ignore


def _known(tensor: Tensor) -> list[int] | None:
    """Return the integers in a tensor, or None if they are not known."""
    values: Any = tensor.constant if isinstance(tensor, FakeTensor) else tensor
    if values is None:
        return None
    with no_dispatch():
        return values.tolist()


def _integers(values: list[int], like: Tensor) -> Tensor:
    """Return a tensor of known integers, fake where `like` is."""
    with no_dispatch():
        real = torch.tensor(values, dtype=torch.int64)
    if not isinstance(like, FakeTensor):
        return real
    mode = like.fake_mode
    return mode.fake_tensor_converter.from_real_tensor(mode, real, make_constant=True)


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    known = _known(lengths)
    if known is None:
        return _PACK(x, lengths, batch_first)  # which says that it cannot
    batch, steps = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    sizes = [sum(length > step for length in known) for step in range(max(known))]
    if len(known) != batch or max(known) > steps or min(known) < 1:
        raise RuntimeError(f"lengths {known} do not fit {batch} sequences of {steps} steps")
    rows = [
        row * steps + step if batch_first else step * batch + row
        for step, size in enumerate(sizes)
        for row in range(size)
    ]
    return x.flatten(0, 1).index_select(0, _integers(rows, x)), _integers(sizes, x)


def _pad(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, value: float, total: int
) -> tuple[Tensor, Tensor]:
    sizes = _known(batch_sizes)
    if sizes is None:
        return _UNPACK(data, batch_sizes, batch_first, value, total)
    batch, steps = sizes[0], max(total, len(sizes))
    place = {}
    for step, size in enumerate(sizes):
        for row in range(size):
            place[row, step] = len(place)
    # The last row is the padding.
    places = [[place.get((row, step), len(place)) for step in range(steps)] for row in range(batch)]
    if not batch_first:
        places = [list(column) for column in zip(*places, strict=True)]
    rows = torch.cat([data, torch.full_like(data[:1], value)])
    flat = rows.index_select(0, _integers([p for line in places for p in line], data))
    lengths = [sum(size > row for size in sizes) for row in range(batch)]
    return flat.unflatten(0, (len(places), len(places[0]))), _integers(lengths, data)


def _with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a recurrence that is given the integers that it reads step by step."""

    def run(*args: Any) -> Any:
        def real(tensor: FakeTensor) -> Tensor:
            return tensor if tensor.constant is None else tensor.constant

        return function(*tree_map_only(FakeTensor, real, args))

    return run


@contextlib.contextmanager
def known_order() -> Iterator[None]:
    """Let the order of unsorted sequences be known; PyTorch's code writes it into an empty tensor."""
    invert = rnn.invert_permutation
    rnn.invert_permutation = lambda order: None if order is None else torch.argsort(order)
    try:
        yield
    finally:
        rnn.invert_permutation = invert


ON_PACKED: dict[Callable[..., Any], Callable[..., Any]] = {
    _PACK: _pack,
    _UNPACK: _pad,
    **{f: _with_values(f) for f in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
}
"""What takes the place of functions of PyTorch that read the lengths of sequences."""
