import pytest
import torch

from isoflop.errors import IsoflopError
from isoflop.patterns import NM, Transposable
from isoflop.patterns.linear_program import best_regular_reference


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_weight_and_transpose_are_nm():
    pattern, nm = Transposable(n=2, m=8), NM(n=2, m=8)
    shape = (16, 24, 3, 3)
    mask = pattern.top(draw(*shape).abs(), pattern.count(shape))
    assert mask.sum() == mask.numel() // 4
    assert nm.check(mask)
    assert nm.check(mask.transpose(0, 1).contiguous())


def test_the_mask_of_a_convolution_is_that_of_its_matrices():
    pattern = Transposable(n=4, m=8)
    scores = draw(8, 16, 2, 2).abs()
    mask = pattern.top(scores, scores.numel() // 2)
    for i in range(2):
        for j in range(2):
            tiles = scores[:, :, i, j].view(8, 2, 8).transpose(0, 1)
            expected = best_regular_reference(tiles, 4)
            assert torch.equal(mask[:, :, i, j].view(8, 2, 8).transpose(0, 1), expected)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((8, 2), 2 * 4),  # four in each column
        ((2, 8), 2 * 4),
        ((3, 4), 12),  # no line is longer than four
        ((7, 7), 7 * 4),
        ((5, 7), 5 * 4),
        ((3, 7), 3 * 4),
        ((90, 90), 11 * 11 * 32 + 2 * 11 * 2 * 4 + 4),
        ((8, 1, 3, 3), 9 * 4),  # depthwise: half of the channels at each kernel position
    ],
)
def test_ragged_tiles_hold_what_they_can(shape, count):
    pattern = Transposable(n=4, m=8)
    assert pattern.count(shape) == count
    mask = pattern.top(draw(*shape), count)
    assert mask.sum() == count
    for dim in (0, 1):
        for start in range(0, shape[dim], 8):
            block = mask.narrow(dim, start, min(8, shape[dim] - start))
            assert (block.sum(dim) <= 4).all()


def test_survivors_stay_and_the_rest_is_the_best_completion():
    pattern = Transposable(n=4, m=8)
    shape = (16, 16)
    count = pattern.count(shape)
    mask = pattern.top(draw(*shape, seed=1), count)
    drop, grow = draw(*shape, seed=2), draw(*shape, seed=3)
    new = pattern.drop_and_grow(mask, drop, grow, 40)
    lowest = drop.masked_fill(~mask, torch.inf).flatten().argsort()[:40]
    survivors = mask.clone()
    survivors.view(-1)[lowest] = False
    assert not (survivors & ~new).any()

    def tiles(tensor):
        return tensor.view(2, 8, 2, 8).transpose(1, 2).reshape(4, 8, 8)

    assert torch.equal(tiles(new), best_regular_reference(tiles(grow), 4, tiles(survivors)))
    assert 0 < (new & ~mask).sum() == (mask & ~new).sum() <= 40


def test_a_single_position_cannot_move():
    pattern = Transposable(n=2, m=4)
    mask = pattern.random((4, 4), 8, torch.Generator().manual_seed(0))
    assert torch.equal(pattern.drop_and_grow(mask, draw(4, 4), draw(4, 4, seed=1), 1), mask)


def test_options_are_checked():
    with pytest.raises(IsoflopError, match="n < m"):
        Transposable(n=8, m=8)
