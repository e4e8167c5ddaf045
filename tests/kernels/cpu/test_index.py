"""The index of the non-zeros."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import KernelError
from isoflop.kernels import build_index


@st.composite
def geometries(draw):
    """Draw groups, rows and the shape of a weight."""
    groups = draw(st.integers(1, 3))
    rows = draw(st.sampled_from([1, 4]))
    out = groups * rows * draw(st.integers(1, 9))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return groups, rows, (out, draw(st.integers(1, 40)), *kernel)


def masked(shape, rows, density, seed=0):
    """Return a weight whose non-zeros come in blocks of `rows` outputs."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape[0] // rows, *shape[1:], generator=generator) < density
    return torch.randn(shape, generator=generator) * mask.repeat_interleave(rows, 0)


@given(geometries(), st.floats(0, 1), st.integers(1, 5))
def test_index_and_back(geometry, density, block):
    groups, rows, shape = geometry
    weight = masked(shape, rows, density)
    positions = weight.flatten().nonzero().flatten()
    index, order = build_index(
        positions, shape, groups=groups, rows=rows, blocks=(block, block * rows)
    )
    values = weight.flatten()[positions[order]]
    index.check()
    assert index.nnz == len(positions)
    assert torch.equal(index.positions(), positions[order])
    assert torch.equal(index.to_dense(values), weight)


@given(geometries(), st.floats(0, 1))
def test_columns_hold_the_same_entries(geometry, density):
    groups, rows, shape = geometry
    out, per_group, kh, kw = shape
    taps = kh * kw
    weight = masked(shape, rows, density)
    positions = weight.flatten().nonzero().flatten()
    index, order = build_index(positions, shape, groups=groups, rows=rows)
    first = positions[order][::rows]
    found = torch.full((len(first),), -1)
    blocks_out = math.ceil(out // groups / index.block_out)
    blocks_in = math.ceil(per_group / index.block_in)
    row_groups = out // groups // rows
    for column in range(groups * blocks_out * per_group):
        group, block = divmod(column // per_group, blocks_out)
        channel = column % per_group
        segment = (group * blocks_in + channel // index.block_in) * row_groups
        tile = int(index.starts[segment + block * index.block_out // rows])
        for k in range(int(index.t_starts[column]), int(index.t_starts[column + 1])):
            word = int(index.t_entries[k])
            entry, offset = tile + (word & 0xFFFF), word >> 16
            row = group * (out // groups) + block * index.block_out + offset // taps
            found[entry] = (row * per_group + channel) * taps + offset % taps
    assert torch.equal(found, first)


def test_bytes_per_non_zero():
    weight = masked((512, 512, 3, 3), 1, 0.1)
    positions = weight.flatten().nonzero().flatten()
    index, _ = build_index(positions, (512, 512, 3, 3))
    assert index.nbytes / index.nnz < 7


@pytest.mark.parametrize("field", ["offsets", "starts", "t_entries", "t_starts"])
def test_damage_is_found(field):
    weight = masked((8, 20, 3, 3), 1, 0.3)
    positions = weight.flatten().nonzero().flatten()
    index, _ = build_index(positions, (8, 20, 3, 3))
    tensor = getattr(index, field).clone()
    tensor[len(tensor) // 2] += 1
    with pytest.raises(KernelError, match="damaged"):
        dataclasses.replace(index, **{field: tensor}).check()
    with pytest.raises(KernelError, match="damaged"):
        dataclasses.replace(index, **{field: tensor[1:]}).check()


@pytest.mark.parametrize(
    ("positions", "options", "message"),
    [
        ([3, 1], {}, "ascend"),
        ([1, 1], {}, "ascend"),
        ([-1, 1], {}, "ascend"),
        ([0, 72], {}, "ascend"),
        ([0, 1], {"rows": 4}, "whole blocks"),
        ([0, 1], {"rows": 2}, "blocks of 2"),
        ([0, 1], {"groups": 3}, "3 groups"),
        ([0, 1], {"blocks": (8192, 8)}, "too large"),
    ],
)
def test_wrong_positions(positions, options, message):
    with pytest.raises(KernelError, match=message):
        build_index(torch.tensor(positions), (8, 1, 3, 3), **options)
