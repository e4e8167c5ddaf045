import pytest
import torch

from isoflop.errors import IsoflopError
from isoflop.patterns import NM


def test_the_two_largest_of_four():
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.05, 7, 7, 7, 7]])
    assert NM().top(scores, 4).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]


def test_groups_of_convolutions_run_along_the_input_channels():
    scores = torch.rand(3, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = NM(n=1, m=4).top(scores, 3 * 2 * 4)
    for out in range(3):
        for i in range(2):
            for j in range(2):
                for start in (0, 4):
                    group = scores[out, start : start + 4, i, j]
                    chosen = mask[out, start : start + 4, i, j]
                    assert chosen.nonzero().item() == group.argmax()


def test_the_remainder_keeps_what_padding_allows():
    # 90 inputs are 22 groups of 4 and one of 2.
    assert NM().count((90, 90)) == 90 * (22 * 2 + 2)
    mask = NM(n=2, m=8).top(torch.arange(11.0)[None], 4)
    assert mask.nonzero()[:, 1].tolist() == [6, 7, 9, 10]
    assert NM().count((32, 1, 3, 3)) == 32 * 9  # a depthwise convolution stays dense


def test_disallowed_positions_fill_up_groups():
    scores = torch.tensor([[-torch.inf, 9.0, 3.0, 5.0]])
    allowed = torch.tensor([[True, False, False, False]])
    assert NM().top(scores, 2, allowed).tolist() == [[True, True, False, False]]


def test_rewire_fills_each_group_by_grow_score():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 0]]).bool()
    drop = torch.tensor([[0.1, 5, 0, 0, 6, 0.2, 0, 0]])
    grow = torch.tensor([[0, 9, 1, 2, 9, 3, 1, 2.0]])
    new = NM().drop_and_grow(mask, drop, grow, 2)
    # The first group swaps; in the second what was dropped is the best to grow.
    assert new.int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]]
    # Survivors stay even where others would score higher.
    assert torch.equal(NM().drop_and_grow(mask, drop, 10 - grow, 0), mask)


@pytest.mark.parametrize(
    ("n", "m"), [(4, 4), (0, 4), (-1, 4), (5, 4), (2.0, 4), (True, 4), (2, 65)]
)
def test_options_are_checked(n, m):
    with pytest.raises(IsoflopError, match="n < m"):
        NM(n=n, m=m)
