import pytest
import torch

from isoflop.errors import IsoflopError
from isoflop.patterns import Block


def test_the_blocks_of_largest_sum():
    scores = torch.tensor([[1.0, 2, 9, 0, 3, 3], [1, 2, 0, 0, 3, 3]])
    mask = Block(rows=2, columns=2).top(scores, 8)
    assert mask.int().tolist() == [[0, 0, 1, 1, 1, 1]] * 2


def test_counts_are_multiples_of_a_block():
    pattern = Block(rows=16, columns=16)
    shape = (64, 32, 3, 3)
    for nnz, count in [(0, 256), (384, 256), (385, 512), (10**6, 64 * 32 * 9)]:
        assert pattern.count(shape, nnz) == count


def test_smaller_blocks_at_the_edges_have_their_share():
    # 90 = 5 * 16 + 10: 25 full blocks, 5 at the right, 5 below and one corner.
    pattern = Block(rows=16, columns=16)
    count = pattern.count((90, 90), 90 * 90 // 2)
    assert abs(count - 4050) <= 128
    mask = pattern.random((90, 90), count, torch.Generator().manual_seed(0))
    right = mask[:80, 80:].view(5, 16, 10)[:, 0, 0].sum()
    assert right in (2, 3)
    assert mask[80:, :80].view(10, 5, 16)[0, :, 0].sum() in (2, 3)
    # Full blocks worth nothing take no place of others, nor do the others take theirs.
    scores = torch.zeros(90, 90)
    scores[:, 80:] = 1
    assert pattern.top(scores, count)[:80, 80:].view(5, 16, 10)[:, 0, 0].sum() == right


def test_infinities_of_both_signs_may_meet_in_a_block():
    scores = torch.tensor([[torch.inf, -torch.inf, 0, 1, -torch.inf, 2, 2, torch.inf]])
    pattern = Block(rows=1, columns=2)
    assert pattern.top(scores, 2).int().tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]]
    assert pattern.top(scores, 6).int().tolist() == [[1, 1, 1, 1, 0, 0, 1, 1]]


def test_only_blocks_inside_are_allowed():
    scores = torch.tensor([[9.0, 9, 1, 1, -torch.inf, 0, 5, 5]])
    allowed = torch.tensor([[True, False, True, True, True, True, True, True]])
    pattern = Block(rows=1, columns=2)
    assert pattern.top(scores, 6, allowed).int().tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]]


def test_rewire_drops_and_grows_whole_blocks():
    pattern = Block(rows=1, columns=2)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]]).bool()
    drop = torch.tensor([[0.0, 3, 1, 1, 0, 0, 0, 0]])
    grow = torch.tensor([[0.0, 0, 0, 0, 5, 0, 1, 1]])
    for dropped, expected in [
        (1, [1, 1, 1, 1, 0, 0, 0, 0]),  # one position is less than a block
        (2, [1, 1, 0, 0, 1, 1, 0, 0]),
        (3, [1, 1, 0, 0, 1, 1, 0, 0]),
        (4, [0, 0, 0, 0, 1, 1, 1, 1]),
    ]:
        assert pattern.drop_and_grow(mask, drop, grow, dropped).int().tolist() == [expected]
    # Growth to another count, and a block that comes back.
    assert pattern.drop_and_grow(mask, drop, grow, 2, 4).int().tolist() == [
        [1, 1, 0, 0, 1, 1, 1, 1]
    ]
    assert pattern.drop_and_grow(mask, drop, -grow, 2).int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert pattern.drop_and_grow(mask, drop, grow, 2, 0).int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0]
    ]


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, -1), (1.0, 4), (True, 4)])
def test_options_are_checked(rows, columns):
    with pytest.raises(IsoflopError, match="rows and columns"):
        Block(rows=rows, columns=columns)
