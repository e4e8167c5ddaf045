"""Blocks that are zero or non-zero as a whole."""

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.patterns import tiles
from isoflop.patterns.base import PATTERNS, Pattern, is_integer
from isoflop.patterns.select import drop_lowest, highest


@PATTERNS.register("block")
@dataclass(frozen=True, kw_only=True)
class Block(Pattern):
    """Blocks: every block of rows × columns is zero or non-zero as a whole.

    Layout: at each position of the kernel, the matrix output × input is cut into blocks of `rows`
    output channels × `columns` input channels.

    Remainder: blocks at ragged edges are smaller. So that counts stay exact, each size has its
    share: of the B_k blocks of size k a mask has the ``floor(f * B_k + 1/2)`` best, for one fraction
    f; sizes that get another block at the same f get it one after the other. So possible counts are
    at most one full block apart, and if all blocks are alike, every multiple of their size is
    possible. Blocks compete with others of their size only; a size with a single block has it
    always or never.

    Scores: a block is worth the sum of its scores (their mean says the same, since only blocks of
    one size are compared). Of equal blocks the first wins, in the order of kernel position, row and
    column. `allowed` means the blocks that lie inside as a whole.

    Rewiring: of the x active blocks of a size, ``floor(drop / nnz * x)`` of lowest drop score are
    dropped, hence ``floor(drop / size)`` if all blocks are alike, and as many of highest grow score
    are grown as the new mask has to have.

    Source: Narang et al. 2017, "Block-sparse recurrent neural networks",
    https://arxiv.org/abs/1711.02782.

    Attributes:
        rows: Output channels of a block.
        columns: Input channels of a block.
    """

    form: ClassVar[str] = "'16x16' (blocks of output x input channels)"
    preselects: ClassVar[bool] = True

    rows: int = 1
    columns: int = 4

    def __post_init__(self) -> None:
        rows, columns = self.rows, self.columns
        if not is_integer(rows) or not is_integer(columns) or rows < 1 or columns < 1:
            raise IsoflopError(
                "A block has a positive number of rows and columns, such as rows=16, columns=16, not "
                f"rows={rows!r}, columns={columns!r}."
            )

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the pattern of a text such as ``"16x16"``, or None."""
        match = re.fullmatch(r"(\d+)x(\d+)", text, re.IGNORECASE)
        return cls(rows=int(match[1]), columns=int(match[2])) if match else None

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self.rows, self.columns

    def count(self, shape: tuple[int, ...], nnz: int) -> int:
        """Return the possible number nearest to `nnz`."""
        return _size(self._regions(shape), self._shares(shape, nnz))

    def check(self, mask: Tensor) -> bool:
        """Return whether every block is whole and every size of block has its share."""
        shape = tuple(mask.shape)
        matrices = tiles.to_matrices(mask)
        numbers = []
        for region in self._regions(shape):
            blocks = tiles.cut(matrices, region).flatten(1)
            active = blocks.any(1)
            if not torch.equal(active, blocks.all(1)):
                return False
            numbers.append(int(active.sum()))
        return numbers == self._shares(shape, int(mask.sum()))

    def top(self, scores: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
        """Return the mask of the best blocks with `count` active positions in total."""
        shape = tuple(scores.shape)
        regions, shares = self._regions(shape), self._shares(shape, count)
        assert count == _size(regions, shares)
        worths = _worths(scores, regions)
        if allowed is not None:
            inside = _whole(allowed, regions)
            worths = [w.masked_fill(~i, -torch.inf) for w, i in zip(worths, inside, strict=True)]
        chosen = [highest(w, share) for w, share in zip(worths, shares, strict=True)]
        return _spread(chosen, regions, shape)

    def random(
        self, shape: tuple[int, ...], count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return a CPU mask of exactly `count` active positions, its blocks drawn uniformly."""
        regions, shares = self._regions(shape), self._shares(shape, count)
        assert count == _size(regions, shares)
        chosen = []
        for region, share in zip(regions, shares, strict=True):
            order = torch.randperm(region.num_tiles, generator=generator)
            chosen.append(torch.zeros(len(order), dtype=torch.bool))
            chosen[-1][order[:share]] = True
        return _spread(chosen, regions, shape)

    def drop_and_grow(
        self,
        mask: Tensor,
        drop_scores: Tensor,
        grow_scores: Tensor,
        drop: int,
        grow: int | None = None,
    ) -> Tensor:
        """Return a new mask: whole blocks dropped and grown, `drop` and `grow` positions or less.

        If fewer positions are to grow than to drop, one more block may have to go than `drop` has
        room for, so that the number of positions is that of `count`.
        """
        shape = tuple(mask.shape)
        regions, nnz = self._regions(shape), int(mask.sum())
        before = self._shares(shape, nnz)
        after = self._shares(shape, nnz - drop + (drop if grow is None else grow))
        active = _whole(mask, regions)
        drop_worths, grow_worths = _worths(drop_scores, regions), _worths(grow_scores, regions)
        chosen = []
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            dropped = max(drop * old // nnz, old - new)
            survivors = drop_lowest(active[i], drop_worths[i], dropped)
            chosen.append(survivors | highest(grow_worths[i], new - old + dropped, ~survivors))
        return _spread(chosen, regions, shape)

    def candidates(self, mask: Tensor, grow_scores: Tensor, grow: int) -> Tensor:
        """Return the best inactive blocks of each size, as many as have room in `grow`."""
        shape = tuple(mask.shape)
        regions = self._regions(shape)
        chosen = []
        pairs = zip(regions, _whole(mask, regions), _worths(grow_scores, regions), strict=True)
        for region, active, worths in pairs:
            height, width = region.tile
            number = min(grow // (height * width), int((~active).sum()))
            chosen.append(highest(worths, number, ~active))
        return _spread(chosen, regions, shape)

    def _regions(self, shape: tuple[int, ...]) -> list[tiles.Region]:
        return tiles.regions(shape, self.rows, self.columns)

    def _shares(self, shape: tuple[int, ...], nnz: int) -> list[int]:
        """Return how many blocks of each size a mask with about `nnz` positions has."""
        regions = self._regions(shape)
        totals = [region.num_tiles for region in regions]

        def shares(index: int, number: int) -> list[int]:
            """Return the shares at which one size has just got its `number`-th block."""
            # f = (number - 1/2) / total, in integers. If several sizes get one at the same f, then
            # in their order: 1 less under the fraction leaves out what is reached only now.
            total = totals[index]
            return [
                ((2 * number - 1) * other + total - (i > index)) // (2 * total)
                for i, other in enumerate(totals)
            ]

        # On both sides of `nnz` take the nearest step of any size.
        below, above = [], []
        for index, total in enumerate(totals):
            steps = range(1, total + 1)
            fit = bisect_right(steps, nnz, key=lambda k, i=index: _size(regions, shares(i, k)))
            below += [shares(index, fit)] if fit else []
            above += [shares(index, fit + 1)] if fit < total else []
        candidates = []
        if below:
            candidates.append(max(below, key=lambda x: _size(regions, x)))
        if above:
            candidates.append(min(above, key=lambda x: _size(regions, x)))
        return min(candidates, key=lambda x: abs(_size(regions, x) - nnz))


def _size(regions: list[tiles.Region], shares: list[int]) -> int:
    return sum(
        share * region.tile[0] * region.tile[1]
        for region, share in zip(regions, shares, strict=True)
    )


def _worths(scores: Tensor, regions: list[tiles.Region]) -> list[Tensor]:
    """Return the finite sum of the scores of each block, added in one order on every device."""
    # Infinities become numbers so large that no finite scores outweigh them, yet they may meet in a
    # block.
    matrices = tiles.to_matrices(scores.double().clamp(-1e300, 1e300))
    worths = []
    for region in regions:
        blocks = tiles.cut(matrices, region)
        rows = sum(blocks.unbind(1), start=torch.zeros_like(blocks[:, 0]))
        worths.append(sum(rows.unbind(1), start=torch.zeros_like(rows[:, 0])))
    return worths


def _whole(mask: Tensor, regions: list[tiles.Region]) -> list[Tensor]:
    """Return which blocks lie inside `mask` as a whole."""
    matrices = tiles.to_matrices(mask)
    return [tiles.cut(matrices, region).flatten(1).all(1) for region in regions]


def _spread(chosen: list[Tensor], regions: list[tiles.Region], shape: tuple[int, ...]) -> Tensor:
    """Return the mask of `shape` whose active blocks are `chosen`."""
    matrices = torch.empty(tiles.matrices_shape(shape), dtype=torch.bool, device=chosen[0].device)
    for region, active in zip(regions, chosen, strict=True):
        tiles.paste(matrices, region, active[:, None, None])
    return tiles.from_matrices(matrices, shape)
