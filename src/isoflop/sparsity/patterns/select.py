"""Exact selection of the best positions, the same on every device."""

import torch
from torch import Tensor


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
