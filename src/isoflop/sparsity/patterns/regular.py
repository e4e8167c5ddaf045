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

from isoflop.sparsity.patterns.select import highest_of_each

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
    fixed = torch.zeros_like(scores, dtype=torch.bool) if fixed is None else fixed
    fixed = fixed.permute(1, 2, 0)
    mask = torch.empty(tiles, size, size, dtype=torch.bool, device=scores.device)
    step = max(1, CHUNK // size**2)
    for start in range(0, tiles, step):
        part = slice(start, start + step)
        solved = _solve(values[..., part].contiguous(), n, fixed[..., part].contiguous())
        mask[part] = solved.permute(2, 0, 1)
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


def _solve(values: Tensor, n: int, fixed: Tensor) -> Tensor:
    """Solve one chunk, shaped (row, column, tile)."""
    chosen = highest_of_each(values.transpose(0, 1), n, fixed.transpose(0, 1)).transpose(0, 1)
    chosen = chosen.contiguous()
    excess = chosen.sum(0) - n
    work = excess.any(0).nonzero().squeeze(1)
    while len(work):
        part = chosen[..., work]
        _move_one(part, excess[:, work], values[..., work], fixed[..., work])
        chosen[..., work] = part
        excess[:, work] = part.sum(0) - n
        work = work[excess[:, work].any(0)]
    return chosen


def _move_one(chosen: Tensor, excess: Tensor, values: Tensor, fixed: Tensor) -> None:
    """Move one position of each tile from a column with too many to one with too few, at best."""
    size = len(values)
    leave = torch.where(chosen & ~fixed, values, torch.inf)
    enter = torch.where(chosen, torch.inf, -values)
    # Cost of moving a position from one column to another, within the row where it is cheapest.
    move = leave[0, :, None] + enter[0, None]
    buffer = torch.empty_like(move)
    for row in range(1, size):
        torch.add(leave[row, :, None], enter[row, None], out=buffer)
        torch.minimum(move, buffer, out=move)
    # Cost of the cheapest chain that ends in a column, by number of moves (Bellman and Ford).
    costs = [torch.where(excess > 0, 0.0, torch.inf).to(values)]
    while len(costs) < size:
        torch.add(costs[-1][:, None], move, out=buffer)
        cost = torch.minimum(costs[-1], buffer.amin(0))
        if torch.equal(cost, costs[-1]):
            break
        costs.append(cost)
    # From its end, follow the chain back. `argmin` returns the first of equal minima.
    flat = chosen.view(size * size, -1)
    column = costs[-1].masked_fill(excess >= 0, torch.inf).argmin(0, keepdim=True)
    for after, before in zip(costs[:0:-1], costs[-2::-1], strict=True):
        moved = after.gather(0, column) < before.gather(0, column)
        source = (before + _column_of(move, column)).argmin(0, keepdim=True)
        cheapest = _column_of(leave, source) + _column_of(enter, column)
        row = cheapest.argmin(0, keepdim=True)
        for index in (row * size + source, row * size + column):
            flat.scatter_(0, index, flat.gather(0, index) ^ moved)
        column = torch.where(moved, source, column)


def _column_of(matrices: Tensor, column: Tensor) -> Tensor:
    """Return one column of each matrix (row, column, tile), shaped (row, tile)."""
    return matrices.gather(1, column[None].expand(len(matrices), 1, -1)).squeeze(1)
