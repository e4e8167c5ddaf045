import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as arrays

from isoflop.errors import ModelFileError
from isoflop.io.packing import BITS, POSITIONS, VALUES, PackedWeight, pack, unpack


@given(arrays.arrays(bool, arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7)))
def test_weights_come_back(mask):
    mask = torch.from_numpy(np.ascontiguousarray(mask))
    weight = torch.randn(mask.shape)
    tensors = pack("w", weight, mask)
    values, positions = unpack("w", PackedWeight(tuple(mask.shape), "masked"), tensors)
    assert torch.equal(values, weight[mask])
    assert torch.equal(positions, mask.flatten().nonzero().flatten())


def test_the_smaller_of_the_two_is_kept():
    weight = torch.randn(64, 64)
    few, many = torch.zeros(2, 64, 64, dtype=torch.bool)
    few[0, :100], many[0, :10] = True, True
    many[:3] = True
    assert pack("w", weight, few).keys() == {"w" + VALUES, "w" + POSITIONS}
    packed = pack("w", weight, many)
    assert packed.keys() == {"w" + VALUES, "w" + BITS}
    assert packed["w" + BITS].nbytes == 64 * 64 / 8


DAMAGE = {
    "no values": lambda t: t.pop("w.values"),
    "no positions": lambda t: t.pop("w.positions"),
    "too few values": lambda t: t.update({"w.values": t["w.values"][1:]}),
    "beyond the end": lambda t: t["w.positions"].__setitem__(-1, 400),
    "negative": lambda t: t["w.positions"].__setitem__(0, -1),
    "twice": lambda t: t["w.positions"].__setitem__(1, int(t["w.positions"][0])),
    "matrix": lambda t: t.update({"w.values": t["w.values"][None]}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_positions(damage):
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[3, ::4] = True
    tensors = pack("w", torch.randn(20, 20), mask)
    DAMAGE[damage](tensors)
    with pytest.raises(ModelFileError, match="'w' in the file is damaged"):
        unpack("w", PackedWeight((20, 20), "masked"), tensors)


@pytest.mark.parametrize("bits", [[255, 255], [255, 255, 0], [255, 254], [1.0, 2.0]])
def test_damaged_bits(bits):
    tensors = {"w.values": torch.ones(9), "w.bits": torch.tensor(bits)}
    if all(isinstance(b, int) for b in bits):
        tensors["w.bits"] = tensors["w.bits"].to(torch.uint8)
    with pytest.raises(ModelFileError, match="damaged"):
        unpack("w", PackedWeight((3, 3), "masked"), tensors)
