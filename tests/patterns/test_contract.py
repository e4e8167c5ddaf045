"""What every registered pattern must do, on weights of every shape."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import IsoflopError
from isoflop.patterns import NM, PATTERNS, Block, Transposable, parse_pattern

SHAPES = {
    "linear": (16, 32),
    "linear of width 90": (90, 90),
    "tiny": (3, 5),
    "one input": (8, 1),
    "conv 1x1": (16, 8, 1, 1),
    "conv 3x3": (16, 8, 3, 3),
    "ragged conv 3x3": (10, 13, 3, 3),
    "depthwise": (12, 1, 3, 3),
    "conv 1d": (9, 20, 5),
}
# The default of every registered pattern, and options that meet other remainders.
PATTERNS_TESTED = [
    *(cls() for _, cls in PATTERNS.items()),
    NM(n=5, m=7),
    Transposable(n=1, m=8),
    Transposable(n=5, m=6),
    Block(rows=4, columns=1),
    Block(rows=16, columns=16),
    Block(rows=3, columns=7),
]

patterns = pytest.mark.parametrize("pattern", PATTERNS_TESTED, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_ties(shape, seed=0):
    """Scores of few values, infinities and zeros of both signs among them."""
    values = torch.tensor([-torch.inf, -1.0, -0.0, 0.0, 0.5, 1.0, torch.inf])
    return values[torch.randint(7, shape, generator=torch.Generator().manual_seed(seed))]


@patterns
@shapes
def test_counts_are_possible_and_nearest(pattern, shape):
    numel = math.prod(shape)
    asked = range(numel + 1) if numel < 1000 else range(0, numel + 1, 37)
    counts = [pattern.count(shape, nnz) for nnz in asked]
    assert all(0 < count <= numel for count in counts)
    assert counts == sorted(counts)
    possible = sorted(set(counts))
    for nnz, count in zip(asked, counts, strict=True):
        assert pattern.count(shape, count) == count
        assert count == min(possible, key=lambda c: (abs(c - nnz), c))


@patterns
@shapes
@pytest.mark.parametrize("scores", [draw, with_ties], ids=["gaussian", "ties"])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_top_is_exact_and_obeys(pattern, shape, scores, density):
    scores = scores(shape)
    count = pattern.count(shape, round(density * scores.numel()))
    mask = pattern.top(scores, count)
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    assert mask.is_contiguous()
    assert int(mask.sum()) == count
    assert pattern.check(mask)
    assert torch.equal(mask, pattern.top(scores.clone(), count))


@patterns
@shapes
def test_top_takes_any_dtype_and_layout(pattern, shape):
    scores = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(0)) % 97
    scores = scores.reshape(shape)
    count = pattern.count(shape, scores.numel() // 2)
    expected = pattern.top(scores, count)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32):
        assert torch.equal(pattern.top(scores.to(dtype), count), expected)
    if scores.dim() == 4:
        mask = pattern.top(scores.to(memory_format=torch.channels_last), count)
        assert torch.equal(mask, expected)
    strided = scores.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(pattern.top(strided, count), expected)


@patterns
@shapes
def test_equal_scores_are_told_apart_by_position_alone(pattern, shape):
    count = pattern.count(shape, math.prod(shape) // 3)
    expected = pattern.top(torch.zeros(shape), count)
    assert torch.equal(expected, pattern.top(-torch.zeros(shape), count))
    assert torch.equal(expected, pattern.top(torch.zeros(shape, dtype=torch.int64), count))
    if not isinstance(pattern, Transposable):  # where it matters how a score compares to padding
        assert torch.equal(expected, pattern.top(torch.full(shape, -torch.inf), count))
        assert torch.equal(expected, pattern.top(torch.full(shape, 3.0), count))


@patterns
@shapes
def test_top_stays_inside_what_is_allowed(pattern, shape):
    count = pattern.count(shape, math.prod(shape) // 3)
    # Somewhere inside, a mask of the pattern exists: the one drawn.
    inside = pattern.random(shape, count, torch.Generator().manual_seed(1))
    assert torch.equal(pattern.top(draw(shape), count, allowed=inside), inside)
    assert torch.equal(pattern.top(with_ties(shape), count, allowed=inside), inside)
    wider = inside | (draw(shape, 2) > 1)
    for scores in (draw(shape), with_ties(shape)):
        mask = pattern.top(scores, count, allowed=wider)
        assert int(mask.sum()) == count
        assert pattern.check(mask)
        assert not (mask & ~wider).any()
    everywhere = torch.ones(shape, dtype=torch.bool)
    expected = pattern.top(draw(shape), count)
    assert torch.equal(pattern.top(draw(shape), count, allowed=everywhere), expected)


@patterns
@shapes
def test_random_masks_depend_on_the_generator_alone(pattern, shape):
    count = pattern.count(shape, math.prod(shape) // 3)

    def mask(seed):
        return pattern.random(shape, count, torch.Generator().manual_seed(seed))

    torch.manual_seed(1)
    first = mask(0)
    state = torch.get_rng_state()
    assert torch.equal(first, mask(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert int(first.sum()) == count
    assert pattern.check(first)
    if count < math.prod(shape) and math.prod(shape) > 100:
        assert any(not torch.equal(first, mask(seed)) for seed in range(1, 9))


@patterns
def test_random_masks_use_all_positions_alike(pattern):
    rows, columns = pattern.block
    m = getattr(pattern, "m", 2)
    shape = (2 * m * rows, 2 * m * columns)  # without ragged edges
    generator = torch.Generator().manual_seed(0)
    count = pattern.count(shape, math.prod(shape) // 2)
    draws = 400
    hits = (
        torch.stack([pattern.random(shape, count, generator) for _ in range(draws)])
        .double()
        .mean(0)
    )
    density = count / math.prod(shape)
    scaled = (hits - density) / math.sqrt(density * (1 - density) / draws)
    assert scaled.square().mean().sqrt() < 1.3  # 1 but for chance
    assert scaled.abs().max() < 6


@patterns
@shapes
@pytest.mark.parametrize("scores", [draw, with_ties], ids=["gaussian", "ties"])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 1.0])
def test_rewire_keeps_the_count_and_the_survivors(pattern, shape, scores, fraction):
    count = pattern.count(shape, math.prod(shape) // 3)
    mask = pattern.random(shape, count, torch.Generator().manual_seed(0))
    before = mask.clone()
    drop = math.floor(fraction * count)
    drop_scores, grow_scores = scores(shape, 1), scores(shape, 2)
    new = pattern.drop_and_grow(mask, drop_scores, grow_scores, drop)
    assert torch.equal(mask, before)
    assert int(new.sum()) == count
    assert pattern.check(new)
    assert int((mask & ~new).sum()) <= drop
    assert torch.equal(new, pattern.drop_and_grow(mask, drop_scores, grow_scores, drop))
    # What is lost was worth no more than what stayed; positions that came back aside. Blocks are
    # compared as a whole, in their own tests.
    lost = drop_scores[mask & ~new]
    if len(lost) and pattern.block == (1, 1):
        survivors = drop_scores[mask].sort(descending=True).values[: count - drop]
        assert not len(survivors) or lost.max() <= survivors.min()
    # Scores of inactive positions do not count.
    other = torch.where(mask, drop_scores, -drop_scores)
    assert torch.equal(new, pattern.drop_and_grow(mask, other, grow_scores, drop))


@patterns
@shapes
@pytest.mark.parametrize(("drop", "grow"), [(0.2, 0.5), (0.5, 0.2), (0.0, 0.3), (0.6, 0.0)])
def test_rewire_meets_another_count(pattern, shape, drop, grow):
    count = pattern.count(shape, math.prod(shape) // 2)
    mask = pattern.random(shape, count, torch.Generator().manual_seed(0))
    drop = math.floor(drop * count)
    grow = min(math.floor(grow * count), mask.numel() - count + drop)
    new = pattern.drop_and_grow(mask, draw(shape, 1), draw(shape, 2), drop, grow)
    assert int(new.sum()) == pattern.count(shape, count - drop + grow)
    assert pattern.check(new)


@patterns
def test_rewire_grows_where_the_grow_score_says(pattern):
    shape = (48, 48)
    count = pattern.count(shape, 48 * 16)
    mask = pattern.random(shape, count, torch.Generator().manual_seed(0))
    drop, grow = draw(shape, 1), draw(shape, 2)
    new = pattern.drop_and_grow(mask, drop, grow, count // 2)
    again = pattern.drop_and_grow(mask, drop, -grow, count // 2)
    assert grow[new].sum() > grow[again].sum()
    assert not torch.equal(new, mask)
    # Where nothing survives, the new mask is the best there is.
    everything = pattern.drop_and_grow(mask, drop, grow, count)
    assert torch.equal(everything, pattern.top(grow, count))


@patterns
@shapes
def test_check_finds_what_breaks_the_pattern(pattern, shape):
    count = pattern.count(shape, math.prod(shape) // 2)
    mask = pattern.random(shape, count, torch.Generator().manual_seed(0))
    assert not pattern.check(torch.zeros(shape, dtype=torch.bool))
    if isinstance(pattern, NM | Transposable):
        for index in mask.flatten().nonzero()[:5]:
            broken = mask.flatten().clone()
            broken[index] = False
            assert not pattern.check(broken.view(shape))


@patterns
def test_text_makes_the_same_pattern(pattern):
    assert parse_pattern(str(pattern)) == pattern
    assert parse_pattern(str(pattern).swapcase()) == pattern
    readers = [kind for _, kind in PATTERNS.items() if kind.parse(str(pattern)) is not None]
    # One class at most reads a text; what no class reads is a name.
    assert readers == ([] if str(pattern) in PATTERNS.names() else [type(pattern)])


@pytest.mark.parametrize("name", PATTERNS.names())
def test_the_form_in_messages_is_one_that_the_class_reads(name):
    kind = PATTERNS.get(name)
    quoted = re.findall("'(.*?)'", kind.form)
    assert all(isinstance(kind.parse(text), kind) for text in quoted)
    assert bool(quoted) == (str(kind()) != name)
    for text in ("", name, "2-4", "x"):
        assert kind.parse(text) is None


@patterns
def test_blocks_are_whole(pattern):
    rows, columns = pattern.block
    shape = (8 * rows, 8 * columns)
    mask = pattern.random(shape, pattern.count(shape, math.prod(shape) // 2))
    blocks = mask.reshape(8, rows, 8, columns)
    assert torch.equal(blocks, blocks[:, :1, :, :1].expand_as(blocks))
    # And none is larger: the pattern says all that holds.
    reduced = blocks[:, 0, :, 0]
    assert bool((reduced[1:] != reduced[:-1]).any())
    assert bool((reduced[:, 1:] != reduced[:, :-1]).any())


@pytest.mark.parametrize("name", PATTERNS.names())
def test_names_stand_for_the_defaults(name):
    assert parse_pattern(name) == PATTERNS.get(name)()
    hash(PATTERNS.get(name)())


@pytest.mark.parametrize("name", [n for n in PATTERNS.names() if n != "unstructured"])
def test_vectors_are_refused(name):
    with pytest.raises(IsoflopError, match=r"shape \(8,\).*'unstructured'"):
        PATTERNS.get(name)().count((8,), 4)


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    m = draw(st.integers(2, 6))
    n = draw(st.integers(1, m - 1))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    pattern = draw(
        st.sampled_from([NM(n=n, m=m), Transposable(n=n, m=m), Block(rows=rows, columns=columns)])
    )
    return pattern, shape, draw(st.integers(0, 2**16)), draw(st.floats(0, 1))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_any_shape_any_option(case):
    pattern, shape, seed, fraction = case
    count = pattern.count(shape, round(fraction * math.prod(shape)))
    mask = pattern.top(with_ties(shape, seed), count)
    assert int(mask.sum()) == count
    assert pattern.check(mask)
    drop = math.floor(fraction * count)
    new = pattern.drop_and_grow(mask, with_ties(shape, seed + 1), with_ties(shape, seed + 2), drop)
    assert int(new.sum()) == count
    assert pattern.check(new)
    assert int((mask & ~new).sum()) <= drop


@patterns
@shapes
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_candidates_are_all_that_can_grow(pattern, shape, seed, dropped, density, pruned):
    """With zeros in place of the other scores, rewiring is the same, also after some pruning."""
    if not pattern.preselects:
        pytest.skip("a pattern that does not preselect has no candidates")
    numel = math.prod(shape)
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that there are ties, and zeros.
    scores = torch.randint(5, shape, generator=generator).float()
    mask = pattern.random(shape, pattern.count(shape, int(density * numel)), generator)
    limit = int(dropped * int(mask.sum()))
    candidates = pattern.candidates(mask, scores, limit)
    assert not (candidates & mask).any()
    # A ragged weight has blocks of four sizes; each may grow up to the limit.
    assert int(candidates.sum()) <= (limit if pattern.block == (1, 1) else 4 * limit)
    known = scores * (candidates | mask)
    fewer = pattern.count(shape, int((1 - pruned) * int(mask.sum())))
    if fewer <= int(mask.sum()):
        weights = torch.randn(shape, generator=generator).masked_fill(~mask, -math.inf)
        mask = pattern.top(weights, fewer, allowed=mask.clone())
    worth = torch.randn(shape, generator=generator)
    drop = min(limit, int(mask.sum()))
    assert torch.equal(
        pattern.drop_and_grow(mask, worth, scores, drop),
        pattern.drop_and_grow(mask, worth, known, drop),
    )
