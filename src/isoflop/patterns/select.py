"""Exact selection of the best positions, the same on every device."""

from collections.abc import Sequence

import torch
from torch import Tensor

_DIGIT = 16
"""Bits of a score by which scores are counted at a time."""

_VALUES = 1 << _DIGIT


def highest(scores: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
    """Return the mask of the `count` highest `scores`; of equal ones the first in order.

    Args:
        scores: Any numeric tensor without NaN.
        count: How many to choose.
        allowed: Boolean mask of the positions to choose from, at least `count` of them.
    """
    return _extreme(scores, count, allowed, largest=True)


def drop_lowest(mask: Tensor, scores: Tensor, count: int) -> Tensor:
    """Return `mask` without its `count` positions of lowest `scores`.

    Of equal ones the last in order go first, so that survivors are those of `highest`.
    """
    return mask & ~_extreme(scores, count, mask, largest=False)


def highest_of_each(scores: Tensor, count: int, first: Tensor | None = None) -> Tensor:
    """Return a mask with the `count` highest along dimension 0; of equal ones the first in order.

    Args:
        scores: Numeric tensor without NaN, shaped (group, …); groups are small.
        count: How many to choose of each group.
        first: Boolean mask of positions that go before all others, whatever their score.
    """
    # Comparing all pairs of a small group runs at memory speed; sorting many short rows does not.
    size = len(scores)
    rank = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device)
    for a in range(size):
        for b in range(a + 1, size):
            later_wins = scores[b] > scores[a]
            if first is not None:
                later_wins = torch.where(first[a] == first[b], later_wins, first[b])
            rank[a] += later_wins
            rank[b] += ~later_wins
    return rank < count


def highest_of_rows(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` highest of each row; of equal ones the first in order.

    Args:
        scores: Floating-point matrix without NaN.
        count: How many to choose; all of a row that has fewer.
    """
    count = min(count, scores.shape[1])
    if count == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    # Of `topk` only the values are used, as in `_extreme`.
    threshold = scores.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    beyond = scores > threshold
    ties = scores == threshold
    wanted = count - beyond.sum(1, keepdim=True, dtype=torch.int32)
    return beyond | (ties & (ties.cumsum(1, dtype=torch.int32) <= wanted))


def counts_within(scores: Sequence[Tensor], prices: Sequence[int], cost: int) -> list[int]:
    """Return how many of the highest scores each tensor has, when as many stay as `cost` buys.

    All scores are ranked together: of equal ones, first those of the earlier tensor, then those of
    lower index. They are taken in this order until one is too dear. Nothing is sorted: scores are
    counted by their leading digits, then those with the deciding digits by the next ones.

    Args:
        scores: Floating-point tensors without NaN, on any devices.
        prices: What one score of each tensor costs, not negative.
        cost: What all that stay may cost together.
    """
    dtype = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    keys = [_sortable(score.flatten(), dtype) for score in scores]
    counts = [0] * len(scores)
    for shift in range(torch.finfo(dtype).bits - _DIGIT, -1, -_DIGIT):
        digits = [(key >> shift).bitwise_and_(_VALUES - 1) for key in keys]
        # Highest digits first.
        found = [digit.bincount(minlength=_VALUES).cpu().flip(0) for digit in digits]
        spent = torch.stack([n * price for n, price in zip(found, prices, strict=True)])
        spent = spent.sum(0).cumsum(0)
        whole = int((spent <= cost).sum())
        counts = [n + int(f[:whole].sum()) for n, f in zip(counts, found, strict=True)]
        cost -= int(spent[whole - 1]) if whole else 0
        deciding = _VALUES - 1 - whole
        keys = [key[digit == deciding] for key, digit in zip(keys, digits, strict=True)]
    # What is left is equal.
    for i, (key, price) in enumerate(zip(keys, prices, strict=True)):
        bought = min(len(key), max(0, cost) // price) if price else len(key)
        counts[i] += bought
        cost -= bought * price
        if bought < len(key):
            break
    return counts


def _sortable(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return integers whose bits, read as those of an unsigned integer, are in the order of `values`."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    # Zero has a sign, which the sum with zero takes away.
    bits = (values.to(dtype) + 0.0).view(integer)
    # The first bit of a float is its sign, the others are its magnitude: all bits of a negative one
    # are turned, the first of others.
    turned = (bits >> (torch.iinfo(integer).bits - 1)).bitwise_or_(torch.iinfo(integer).min)
    return bits.bitwise_xor_(turned)


def _extreme(scores: Tensor, count: int, allowed: Tensor | None, *, largest: bool) -> Tensor:
    """Return the mask of the `count` largest or smallest; the later in order is the smaller."""
    if count == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    flat = scores.flatten()
    if allowed is not None:
        allowed = allowed.flatten()
        flat = flat.masked_fill(~allowed, _end_of_range(flat.dtype, lowest=largest))
    # `topk` breaks ties differently from device to device, so only its values are used: they tell
    # the threshold and how many of the positions equal to it are in. Nothing is read back from the
    # device.
    values = flat.topk(count, largest=largest, sorted=False).values
    threshold = values.min() if largest else values.max()
    ties_in = (values == threshold).sum()
    beyond = flat > threshold if largest else flat < threshold
    ties = flat == threshold
    if allowed is not None:
        ties &= allowed
    order = ties.cumsum(0, dtype=torch.int32 if len(flat) < 2**31 else torch.int64)
    within = order <= ties_in if largest else order > order[-1] - ties_in
    return (beyond | (ties & within)).view(scores.shape)


def _end_of_range(dtype: torch.dtype, *, lowest: bool) -> float | int:
    if dtype.is_floating_point:
        return -torch.inf if lowest else torch.inf
    info = torch.iinfo(dtype)
    return info.min if lowest else info.max
