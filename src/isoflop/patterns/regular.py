"""The best mask of a square tile with equal sums of all rows and columns, for many tiles at once.

The problem is a minimum-cost flow from rows to columns, solved by successive shortest paths (Ahuja,
Magnanti and Orlin 1993, "Network flows", section 9.7): every row first takes its n best positions,
which is optimal but for the columns. Then, while some column has more than n, the cheapest chain of
moves takes one position out of a column that has too many and ends in a column that has too few.
Every stage is optimal for the column sums it has, so the end is optimal altogether.

All tiles of a batch take their steps together, tile by tile in the innermost dimension, where the
additions and minima run at memory speed. Scores become integers of up to 53 bits, kept in float64:
sums are exact, and the result is the same on every device.
"""

import math

import torch
from torch import Tensor

from isoflop.patterns.select import highest_of_each

CHUNK = 2**18
"""Positions solved together, so that what is at work stays in the cache of a CPU."""


def best_regular(
    scores: Tensor, n: int, fixed: Tensor | None = None, allowed: Tensor | None = None
) -> Tensor:
    """Return the masks of highest total score whose rows and columns all have sum n.

    The optimum is exact, up to rounding each score to 1e-12 of the largest of its tile (for tiles
    of 8 × 8; 5e-10 for 64 × 64). First of all it leaves `allowed` as little as it must; then plus
    infinities less minus infinities are as many as possible; then the finite scores count.

    Args:
        scores: Floating-point scores without NaN, shaped (tile, size, size).
        n: Sum of each row and column, 0 < n < size.
        fixed: Boolean, shaped like `scores`: positions that must be in the mask. They must be part
            of some mask with these sums.
        allowed: Boolean, shaped like `scores`: positions to choose from; all if None.
    """
    tiles, size, _ = scores.shape
    # The innermost dimension is the tile.
    values = _as_integers(scores, allowed).permute(1, 2, 0)
    fixed = None if fixed is None else fixed.permute(1, 2, 0)
    mask = torch.empty(tiles, size, size, dtype=torch.bool, device=scores.device)
    step = max(1, CHUNK // size**2)
    for start in range(0, tiles, step):
        part = slice(start, start + step)
        stay = None if fixed is None else fixed[..., part].contiguous()
        mask[part] = _solve(values[..., part].contiguous(), n, stay).permute(2, 0, 1)
    return mask


def _as_integers(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Scale each tile to integers so small that sums along any chain of moves stay exact."""
    size = scores.shape[-1]
    # A cycle of moves exchanges at most 2 * size scores. An infinity outweighs as many finite ones,
    # and what is not allowed as many infinities.
    infinity = 4 * size
    forbidden = -4 * size * infinity
    bits = 53 - math.ceil(math.log2(2 * size * -forbidden))
    scores = scores.double()
    largest = scores.abs().masked_fill(scores.isinf(), 0).amax((1, 2), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    scores = (scores / largest).clamp(-infinity, infinity)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, forbidden)
    return scores.mul(2.0**bits).round()


def _solve(values: Tensor, n: int, fixed: Tensor | None) -> Tensor:
    """Solve one chunk, shaped (row, column, tile)."""
    first = None if fixed is None else fixed.transpose(0, 1)
    chosen = highest_of_each(values.transpose(0, 1), n, first).transpose(0, 1).contiguous()
    # What it costs to give up a position. One that must stay is never given up.
    price = values if fixed is None else values.masked_fill(fixed, torch.inf)
    solved = torch.empty_like(chosen)
    number = torch.arange(chosen.shape[-1], device=chosen.device)
    while True:
        excess = chosen.sum(0) - n
        unequal = excess.any(0)
        num_unequal = int(unequal.sum())
        # Taking solved tiles out costs about as much as a step for the rest.
        if num_unequal <= 0.7 * len(number):
            solved[..., number] = chosen
            if not num_unequal:
                return solved
            left = unequal.nonzero().squeeze(1)
            chosen, values, price, excess, number = (
                tensor.index_select(-1, left) for tensor in (chosen, values, price, excess, number)
            )
        _move_one(chosen, excess, values, price)


def _move_one(chosen: Tensor, excess: Tensor, values: Tensor, price: Tensor) -> None:
    """Move one position of each tile from a column with too many to one with too few, at best.

    Nothing happens in a tile whose columns all have the right number.
    """
    size = len(values)
    leave = price.masked_fill(~chosen, torch.inf)
    enter = values.neg().masked_fill_(chosen, torch.inf)
    # Cost of moving a position from one column to another, within the row where it is cheapest.
    move = leave[0, :, None] + enter[0, None]
    buffer = torch.empty_like(move)
    for row in range(1, size):
        torch.add(leave[row, :, None], enter[row, None], out=buffer)
        torch.minimum(move, buffer, out=move)
    # Cost of the cheapest chain that ends in a column, by number of moves (Bellman and Ford).
    costs = [torch.zeros_like(move[0]).masked_fill_(excess <= 0, torch.inf)]
    while len(costs) < size:
        torch.add(costs[-1][:, None], move, out=buffer)
        cost = torch.minimum(costs[-1], buffer.amin(0))
        if torch.equal(cost, costs[-1]):
            break
        costs.append(cost)
    # From its end, follow the chain back.
    flat = chosen.view(size * size, -1)
    column = _first_minimum(costs[-1].masked_fill(excess >= 0, torch.inf))
    for after, before in zip(costs[:0:-1], costs[-2::-1], strict=True):
        moved = after.gather(0, column) < before.gather(0, column)
        source = _first_minimum(before + _column_of(move, column))
        row = _first_minimum(_column_of(leave, source) + _column_of(enter, column))
        for index in (row * size + source, row * size + column):
            flat.scatter_(0, index, flat.gather(0, index) ^ moved)
        column = torch.where(moved, source, column)


def _column_of(matrices: Tensor, column: Tensor) -> Tensor:
    """Return one column of each matrix (row, column, tile), shaped (row, tile)."""
    return matrices.gather(1, column[None].expand(len(matrices), 1, -1)).squeeze(1)


def _first_minimum(values: Tensor) -> Tensor:
    """Return `values.argmin(0, keepdim=True)`, which is slow over a short outer dimension."""
    lowest = values[0]
    index = torch.zeros(lowest.shape, dtype=torch.int64, device=values.device)
    for i in range(1, len(values)):
        index.masked_fill_(values[i] < lowest, i)
        lowest = torch.minimum(lowest, values[i])
    return index[None]
