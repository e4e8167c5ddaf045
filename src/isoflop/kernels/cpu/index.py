"""Where the non-zeros of a weight are, in the order in which the kernels read them.

A weight of shape (out, in / groups, kh, kw) (a linear layer has kh = kw = 1) is cut, inside each
group, into tiles of `block_out` output channels × `block_in` input channels. The non-zeros are
ordered by (group, block of inputs, output, offset), where the offset ``(c * kh + ky) * kw + kx``
counts inside the block of inputs. So the non-zeros that read one block of inputs lie together, and
the non-zeros of one tile lie together too. That is the order of the values, of their gradients and
of the optimizer's state.

The gradient of the input reads the same values by columns: entries ordered by (group, block of
outputs, input channel, offset), each with the position of its value inside its tile, which fits
into 16 bits. Both orders together take 6 bytes per non-zero and a little for the starts of rows.

The order depends on the geometry alone and not on the processor, so what one machine saves another
can load.
"""

import hashlib
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from isoflop.errors import KernelError

MAX_OFFSETS = 1 << 15
"""Offsets in a block are stored in 15 bits."""

MAX_TILE = 1 << 16
"""Positions in a tile are stored in 16 bits."""

BLOCK_ROWS = 4
"""Consecutive output channels that can share an entry, and that the kernels then read at once."""

_MAX_ENTRIES = 2**31 - 1


@dataclass(frozen=True)
class SparseIndex:
    """The positions of the non-zeros of one weight; made by `build_index`.

    Attributes:
        shape: Shape of the weight: out, in / groups, kh, kw.
        groups: Groups of the convolution.
        rows: How many consecutive output channels share an entry: 1, or 4 for blocks.
        block_in: Input channels of a tile.
        block_out: Output channels of a tile.
        offsets: int16, (entries,). Offset of each entry in its block of inputs.
        starts: int32, (groups * input blocks * outputs per group / rows + 1,). First entry of each
            output (or `rows` of them) in each block of inputs.
        t_entries: int32, (entries,). By columns: offset in the block of outputs in the upper, entry
            relative to the first of the tile in the lower 16 bits.
        t_starts: int32, (groups * output blocks * inputs per group + 1,). First entry of each
            input channel in each block of outputs.
    """

    shape: tuple[int, int, int, int]
    groups: int
    rows: int
    block_in: int
    block_out: int
    offsets: Tensor
    starts: Tensor
    t_entries: Tensor
    t_starts: Tensor

    @property
    def nnz(self) -> int:
        """Number of non-zeros."""
        return self.rows * len(self.offsets)

    @property
    def numel(self) -> int:
        """Number of weights, zeros included."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(t.nbytes for t in tensors if isinstance(t, Tensor))

    def positions(self) -> Tensor:
        """Return the flat positions in the dense weight, in the order of the values.

        Returns:
            int64, (nnz,).

        Raises:
            KernelError: The index is damaged.
        """
        self.check_once()
        return self._positions()

    def _positions(self) -> Tensor:
        out, per_group, kh, kw = self.shape
        taps = kh * kw
        row_groups = out // self.groups // self.rows
        device = self.starts.device
        lengths = self.starts.diff().long()
        segment = torch.arange(len(lengths), device=device).repeat_interleave(
            lengths, output_size=len(self.offsets)
        )
        row_group, block = segment % row_groups, segment // row_groups
        blocks = _ceil_div(per_group, self.block_in)
        group, block = block // blocks, block % blocks
        offset = self.offsets.long()
        channel = block * self.block_in + offset // taps
        row = (group * row_groups + row_group) * self.rows
        first = (row * per_group + channel) * taps + offset % taps
        rows = torch.arange(self.rows, device=device)
        return (first[:, None] + rows * per_group * taps).flatten()

    def to_dense(self, values: Tensor) -> Tensor:
        """Return the dense weight, of shape `shape`, that has `values`, of shape (nnz,)."""
        dense = values.new_zeros(self.numel)
        return dense.index_put_((self.positions(),), values).view(self.shape)

    def check(self) -> None:
        """Check everything that the kernels rely on, so that no index can make them leave memory.

        Raises:
            KernelError: The index is damaged.
        """
        positions = None
        if self._sizes_fit():
            positions = self._positions()
        if positions is not None and len(positions):
            ordered = positions.sort().values
            fits = int(ordered[0]) >= 0 and int(ordered[-1]) < self.numel
            if fits and bool((ordered.diff() > 0).all()):
                again, order = build_index(
                    ordered,
                    self.shape,
                    groups=self.groups,
                    rows=self.rows,
                    blocks=(self.block_in, self.block_out),
                )
                same = torch.equal(positions, ordered[order]) and self.equal(again)
                positions = positions if same else None
            else:
                positions = None
        if positions is None:
            raise KernelError(
                f"The index of a sparse weight of shape {self.shape} is damaged, or of another one. "
                "Load the checkpoint again, or build the index anew with `build_index`."
            )

    def check_once(self) -> None:
        """Check the index, unless it was checked before and nobody has changed its tensors since.

        Raises:
            KernelError: The index is damaged.
        """
        if torch.compiler.is_compiling():
            return  # compiled code runs the same check as an operator of its own does: not at all
        if type(self.offsets) is not Tensor or self.offsets.is_meta:
            return  # there is nothing to look at, and nothing to compute with
        known, now = _CHECKED.get(self.offsets), self._mark()
        if known is None or not _same(known, now):
            self.check()
            _CHECKED[self.offsets] = now

    def signature(self) -> Tensor:
        """Return 64 numbers, 1 or -1, in which two indices differ."""
        digest = hashlib.blake2b(repr(self._geometry()).encode(), digest_size=8)
        for tensor in (self.offsets, self.starts):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        bits = np.unpackbits(np.frombuffer(digest.digest(), dtype=np.uint8))
        return torch.from_numpy(bits * np.float32(2) - np.float32(1))

    def _geometry(self) -> tuple[Any, ...]:
        return (*self.shape, self.groups, self.rows, self.block_in, self.block_out)

    def _mark(self) -> tuple[Any, ...]:
        """Return what changes when a tensor of the index does."""
        tensors = (self.offsets, self.starts, self.t_entries, self.t_starts)
        versions = [-1 if t.is_inference() else t._version for t in tensors]
        return (*tensors[1:], (*versions, *self._geometry()))

    def to(self, device: torch.device) -> "SparseIndex":
        """Return the index on a device."""
        tensors = (self.offsets, self.starts, self.t_entries, self.t_starts)
        if all(t.device == device for t in tensors):
            return self
        return SparseIndex(
            self.shape,
            self.groups,
            self.rows,
            self.block_in,
            self.block_out,
            *(t.to(device) for t in tensors),
        )

    def equal(self, other: "SparseIndex") -> bool:
        """Return whether both say the same."""
        return all(
            torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs
            for mine, theirs in (
                (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
            )
        )

    def _sizes_fit(self) -> bool:
        tensors = (self.offsets, self.starts, self.t_entries, self.t_starts)
        kinds = (torch.int16, torch.int32, torch.int32, torch.int32)
        if any(t.ndim != 1 or t.dtype is not k for t, k in zip(tensors, kinds, strict=True)):
            return False
        out, per_group, _, _ = self.shape
        if min(self._geometry()) < 1 or out % self.groups or out // self.groups % self.rows:
            return False
        segments = out // self.rows * _ceil_div(per_group, self.block_in)
        columns = self.groups * _ceil_div(out // self.groups, self.block_out) * per_group
        entries = len(self.offsets)
        return (
            self.starts.shape == (segments + 1,)
            and self.t_starts.shape == (columns + 1,)
            and self.t_entries.shape == (entries,)
            and all(
                int(starts[0]) == 0
                and int(starts[-1]) == entries
                and bool((starts.diff() >= 0).all())
                for starts in (self.starts, self.t_starts)
            )
        )


_CHECKED = WeakIdKeyDictionary()
"""Of indices known to be whole, by their offsets: the other tensors, versions and geometry."""


def _same(known: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return all(a is b for a, b in zip(known[:-1], now[:-1], strict=True)) and known[-1] == now[-1]


def default_blocks(shape: tuple[int, int, int, int], nnz: int, rows: int = 1) -> tuple[int, int]:
    """Return the input and output channels of a tile for a weight of this shape.

    One or two blocks of inputs, for as many pixels as the kernels hold in registers, have to stay in
    the first level of the cache. Sparser weights take larger ones, for as many products of a sum in a
    pass.
    """
    taps = shape[2] * shape[3]
    # Products of a sum in a block, were the weight dense: 12 or 8 channels of a 3 × 3 kernel.
    most = 108 if nnz < 0.4 * math.prod(shape) else 72
    block = 64 if taps == 1 else max(1, min(most // 9, math.isqrt(MAX_TILE // taps), most // taps))
    return block, _ceil_div(block, rows) * rows


def build_index(
    positions: Tensor,
    shape: tuple[int, int, int, int],
    *,
    groups: int = 1,
    rows: int = 1,
    blocks: tuple[int, int] | None = None,
) -> tuple[SparseIndex, Tensor]:
    """Build the index of the non-zeros at `positions`.

    Args:
        positions: int64, (nnz,). Flat positions in the dense weight, ascending.
        shape: Shape of the weight: out, in / groups, kh, kw.
        groups: Groups of the convolution.
        rows: 4 if the non-zeros come in blocks of four consecutive output channels, else 1.
        blocks: Input and output channels of a tile; by default `default_blocks`.

    Returns:
        The index; and int64, (nnz,), the order of the values: if `dense` is the dense weight, the
        values are ``dense.flatten()[positions[order]]``.

    Raises:
        KernelError: Positions and shape do not fit together, or the weight is too large.
    """
    out, per_group, kh, kw = shape
    taps = kh * kw
    block_in, block_out = default_blocks(shape, len(positions), rows) if blocks is None else blocks
    _check(positions, shape, groups, rows, block_in, block_out)
    row_groups = out // groups // rows

    row, rest = positions // (per_group * taps), positions % (per_group * taps)
    channel, tap = rest // taps, rest % taps
    group, row = row // (out // groups), row % (out // groups)
    blocks_in = _ceil_div(per_group, block_in)
    offset = channel % block_in * taps + tap
    segment = (group * blocks_in + channel // block_in) * row_groups + row // rows
    key = (segment * (block_in * taps) + offset) * rows + row % rows
    order = key.argsort()
    entry = order[::rows]
    if len(key) % rows or not bool((key[order].view(-1, rows).diff(dim=1) == 1).all()):
        raise KernelError(
            f"The non-zeros do not come in whole blocks of {rows} output channels. Use the pattern "
            f"'{rows}x1', or rows=1."
        )
    segment = segment[entry]
    starts = _starts(segment, groups * blocks_in * row_groups)

    group, row, channel, tap = group[entry], row[entry], channel[entry], tap[entry]
    blocks_out = _ceil_div(out // groups, block_out)
    block = row // block_out
    column = (group * blocks_out + block) * per_group + channel
    offset_out = row % block_out * taps + tap
    # The first entry of the tile is that of its first row, whatever the order.
    tile = starts[segment - (row - block * block_out) // rows].long()
    within = torch.arange(len(entry), device=entry.device) - tile
    t_order = (column * (block_out * taps) + offset_out).argsort()
    index = SparseIndex(
        shape=shape,
        groups=groups,
        rows=rows,
        block_in=block_in,
        block_out=block_out,
        offsets=offset[entry].to(torch.int16),
        starts=starts,
        t_entries=(offset_out << 16 | within)[t_order].to(torch.int32),
        t_starts=_starts(column[t_order], groups * blocks_out * per_group),
    )
    if not index.offsets.is_meta:
        _CHECKED[index.offsets] = index._mark()
    return index, order


def _check(
    positions: Tensor,
    shape: tuple[int, int, int, int],
    groups: int,
    rows: int,
    block_in: int,
    block_out: int,
) -> None:
    out, _, kh, kw = shape
    taps = kh * kw
    numel = math.prod(shape)
    if min(*shape, groups, block_in, block_out) < 1:
        raise KernelError(f"A sparse weight cannot have the shape {shape} in {groups} groups.")
    if out % groups:
        raise KernelError(f"{out} output channels cannot be cut into {groups} groups.")
    if rows not in (1, BLOCK_ROWS) or out // groups % rows or block_out % rows:
        raise KernelError(
            f"{out // groups} output channels, or tiles of {block_out}, cannot be cut into blocks of "
            f"{rows}; the kernels know blocks of 1 and 4."
        )
    if max(block_in, block_out) * taps > MAX_OFFSETS or block_in * block_out * taps > MAX_TILE:
        raise KernelError(
            f"Tiles of {block_out}×{block_in} channels with {taps} taps are too large for the index."
        )
    if positions.dtype != torch.int64 or positions.ndim != 1:
        raise KernelError("The positions must be one row of int64.")
    if len(positions) > _MAX_ENTRIES:
        raise KernelError(
            f"{len(positions):,} non-zeros in one layer are more than the index holds."
        )
    if len(positions) and not (
        int(positions[0]) >= 0 and int(positions[-1]) < numel and bool((positions.diff() > 0).all())
    ):
        raise KernelError(f"The positions must ascend and lie inside the {numel:,} weights.")


def _starts(owners: Tensor, count: int) -> Tensor:
    """Return where each of `count` owners starts in the ascending `owners`, and the end."""
    ends = torch.arange(count + 1, device=owners.device)
    return torch.searchsorted(owners, ends).to(torch.int32)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
