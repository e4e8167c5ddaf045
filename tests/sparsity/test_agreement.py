import torch
from hypothesis import given
from hypothesis import strategies as st

from isoflop.sparsity.agreement import checksum

masks = st.lists(st.booleans(), min_size=1, max_size=64).map(torch.tensor)


@given(masks, st.data())
def test_masks_that_differ_have_other_checksums(mask, data):
    other = mask.clone()
    i = data.draw(st.integers(0, len(mask) - 1))
    other[i] = ~other[i]
    assert checksum(other) != checksum(mask)
    assert checksum(mask.clone()) == checksum(mask)


def test_moved_weights_change_the_checksum():
    sums = {int(checksum(torch.arange(1000) == i)) for i in range(1000)}
    assert len(sums) == 1000


def test_memory_layout_does_not_change_the_checksum():
    mask = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    innermost = mask.contiguous(memory_format=torch.channels_last)
    assert checksum(innermost) == checksum(mask)
