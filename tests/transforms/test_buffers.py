"""What a buffer holds tells what it holds at another width."""

import pytest
import torch

from isoflop.transforms.buffers import constant, resized


def frequencies(width: int) -> torch.Tensor:
    return 10000.0 ** (-torch.arange(width, dtype=torch.double) / width)


def sinusoids(width: int, layout: str, rows: int = 30, padding: int = 0) -> torch.Tensor:
    angles = torch.arange(rows, dtype=torch.double)[:, None] * frequencies(width // 2)
    halves = [angles.sin(), angles.cos()]
    if layout == "interleaved":
        table = torch.stack(halves, dim=2).flatten(1)
    else:
        table = torch.cat(halves if layout == "sines first" else halves[::-1], dim=1)
    return torch.cat([torch.zeros(padding, width), table.float()])


def test_frequencies_run_over_the_same_range():
    torch.testing.assert_close(resized(frequencies(8), (20,)), frequencies(20))


def test_zeros_after_the_frequencies_keep_their_share():
    # Rotary embeddings of a part of each head.
    old = torch.cat([frequencies(6), torch.zeros(2).double()])
    new = resized(old, (16,))
    torch.testing.assert_close(new, torch.cat([frequencies(12), torch.zeros(4).double()]))


def test_scaled_frequencies_are_interpolated():
    old = frequencies(32) * torch.linspace(1.0, 0.1, 32).double()
    new = resized(old, (64,))
    assert new is not None
    torch.testing.assert_close(new[::2], old)
    assert (new.diff() < 0).all()


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("layout", ["interleaved", "sines first", "cosines first"])
def test_a_table_of_sinusoids_is_made_anew(layout, padding):
    old = sinusoids(16, layout, padding=padding)
    new = resized(old, (30 + padding, 24))
    torch.testing.assert_close(new, sinusoids(24, layout, padding=padding), atol=1e-4, rtol=0)


def test_positions_may_start_later():
    table = sinusoids(16, "sines first")
    torch.testing.assert_close(
        resized(table[2:], (28, 32)), sinusoids(32, "sines first")[2:], atol=1e-4, rtol=0
    )


def test_a_filter_that_all_channels_share_is_shared_by_more():
    old = torch.rand(1, 1, 3, 3).expand(4, 1, 3, 3)
    new = resized(old, (7, 1, 3, 3))
    torch.testing.assert_close(new, old[:1].expand(7, 1, 3, 3))
    assert resized(torch.rand(4, 1, 3, 3), (7, 1, 3, 3)) is None


def test_a_constant_stays_one():
    new = resized(torch.full((2, 3), -1.5), (2, 5))
    torch.testing.assert_close(new, torch.full((2, 5), -1.5))
    assert constant(torch.ones(2)) == 1.0
    assert constant(torch.arange(2)) is None


@pytest.mark.parametrize(
    ("old", "shape"),
    [
        (torch.arange(8.0), (16,)),
        (1.0 + torch.arange(8.0), (16,)),
        (torch.arange(8), (16,)),
        (torch.eye(4), (4, 8)),
        (torch.hann_window(8), (16,)),
        (sinusoids(16, "sines first") + 0.1, (30, 32)),
        (sinusoids(16, "sines first"), (40, 32)),
        (sinusoids(16, "sines first"), (30, 21)),
        (torch.empty(8, device="meta"), (16,)),
    ],
)
def test_what_is_none_of_these_is_not_guessed(old, shape):
    assert resized(old, shape) is None


@pytest.mark.parametrize("wave", [torch.cos, torch.sin])
@pytest.mark.parametrize("how_often", ["once", "halves", "neighbours"])
def test_cosines_or_sines_alone_are_made_anew(wave, how_often):
    twice = {
        "once": lambda f: f,
        "halves": lambda f: torch.cat([f, f]),
        "neighbours": lambda f: f.repeat_interleave(2),
    }[how_often]
    positions = torch.arange(2000)[:, None]
    old, new = (wave(positions * twice(frequencies(n))).float() for n in (32, 64))
    torch.testing.assert_close(resized(old, tuple(new.shape)), new, atol=1e-3, rtol=0)


def test_rotations_as_complex_numbers_are_made_anew():
    positions = torch.arange(20)[:, None]
    old, new = (torch.polar(torch.ones(20, n).double(), positions * frequencies(n)) for n in (4, 8))
    torch.testing.assert_close(resized(old, (20, 8)), new)


def test_sinusoids_may_be_scaled_and_stand_upright():
    old, new = (0.1 * sinusoids(width, "interleaved") for width in (16, 32))
    torch.testing.assert_close(resized(old, (30, 32)), new)
    torch.testing.assert_close(resized(old.T, (32, 30)), new.T)


def test_filters_that_repeat_from_channel_to_channel_do_so_for_more():
    pair = torch.randn(2, 1, 3, 3)
    assert torch.equal(resized(pair.repeat(4, 1, 1, 1), (16, 1, 3, 3)), pair.repeat(8, 1, 1, 1))  # type: ignore[arg-type]
    assert resized(pair.repeat(4, 1, 1, 1), (9, 1, 3, 3)) is None


def test_an_identity_stays_one():
    assert torch.equal(resized(torch.eye(4), (6, 6)), torch.eye(6))  # type: ignore[arg-type]
