"""Transposable N:M masks: the batched solver against a linear program and greedy selection.

python benchmarks/transposable.py [--tiles 62500] [--sample 300] [--seed 0]

Tiles are 8 × 8 magnitudes of Gaussian weights; 62,500 of them are a layer of 4 million weights.
"""

import argparse
import time

import torch
from torch import Tensor

from isoflop.patterns import NM, Block, Pattern, Transposable, Unstructured
from isoflop.patterns.linear_program import best_regular_reference
from isoflop.patterns.regular import best_regular


def greedy(scores: Tensor, n: int) -> Tensor:
    """Take positions by descending score while their row and column have room.

    The usual shortcut; rows and columns may end with less than n.
    """
    tiles, size, _ = scores.shape
    order = scores.flatten(1).argsort(1, descending=True)
    rows, columns = torch.zeros(2, tiles, size, dtype=torch.int64)
    mask = torch.zeros(tiles, size * size, dtype=torch.bool)
    for position in order.t():
        row, column = position[:, None] // size, position[:, None] % size
        room = (rows.gather(1, row) < n) & (columns.gather(1, column) < n)
        rows.scatter_add_(1, row, room.long())
        columns.scatter_add_(1, column, room.long())
        mask.scatter_(1, position[:, None], room)
    return mask.view_as(scores)


def kept(scores: Tensor, mask: Tensor) -> float:
    return float((scores.double() * mask).sum())


def seconds(function, repeat: int = 3) -> float:
    """Return the least of several times."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_solvers(size: int, tiles: int, sample: int, generator: torch.Generator) -> None:
    scores = torch.randn(tiles, size, size, generator=generator).abs()
    print("| pattern | tiles/s | tiles/s, LP | ratio | kept ÷ optimum | greedy: kept | deficient |")
    print("|---|---|---|---|---|---|---|")
    for n in (1, 2, 4):
        taken = seconds(lambda n=n: best_regular(scores, n))
        start = time.perf_counter()
        reference = best_regular_reference(scores[:sample], n)
        exact = (time.perf_counter() - start) / sample
        mask = best_regular(scores[:sample], n)
        assert (mask.sum(1) == n).all()
        assert (mask.sum(2) == n).all()
        optimum = kept(scores[:sample], reference)
        short = greedy(scores, n)
        deficient = (short.sum((1, 2)) < n * size).double().mean()
        print(
            f"| {n}:{size}-T | {tiles / taken:,.0f} | {1 / exact:,.0f} | "
            f"{tiles / taken * exact:,.0f} | {kept(scores[:sample], mask) / optimum:.6f} | "
            f"{kept(scores[:sample], short[:sample]) / optimum:.4f} | {deficient:.0%} |",
            flush=True,
        )


def time_patterns(side: int, generator: torch.Generator) -> None:
    """Time `top` and `drop_and_grow` of one layer; 30 % of the active weights are dropped."""
    shape = (side, side)
    weight = torch.randn(shape, generator=generator)
    gradient = torch.randn(shape, generator=generator).abs()
    patterns: list[Pattern] = [
        Unstructured(),
        NM(n=2, m=4),
        NM(n=2, m=8),
        Block(rows=16, columns=16),
        *(Transposable(n=n, m=8) for n in (1, 2, 4)),
    ]
    print(f"| pattern | density | top, s | rewire, s |   ({side} × {side} weights)")
    print("|---|---|---|---|")
    for pattern in patterns:
        count = pattern.count(shape, side * side // 4)
        mask = pattern.top(weight.abs(), count)
        top = seconds(lambda p=pattern, c=count: p.top(weight.abs(), c))
        rewire = seconds(
            lambda p=pattern, m=mask, c=count: p.drop_and_grow(
                m, weight.abs(), gradient, int(0.3 * c)
            )
        )
        print(f"| {pattern} | {count / side**2:.3f} | {top:.2f} | {rewire:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=62_500)
    parser.add_argument("--sample", type=int, default=300, help="tiles for the linear program")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    compare_solvers(8, options.tiles, options.sample, generator)
    print()
    time_patterns(round((options.tiles * 64) ** 0.5), generator)


if __name__ == "__main__":
    main()
