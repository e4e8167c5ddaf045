"""Training text that fits into memory, in blocks in random order."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import DataError
from isoflop.lab.data.text.language_data import Position


class ShuffledBlocks:
    """Blocks of a text in memory, all in random order, then all in another one, and so on.

    Args:
        tokens: The text: `blocks · context + 1` tokens are used, what is left is not.
        context: Tokens of a block.
        facts: What identifies the text; the same for the same text.

    Raises:
        DataError: There is not one block.
    """

    start: Position = (0,)

    def __init__(self, tokens: NDArray[Any], context: int, facts: Mapping[str, Any]) -> None:
        self._count = (len(tokens) - 1) // context
        if self._count < 1:
            raise DataError(
                f"The training text has {len(tokens)} tokens, too few for one block of the context "
                f"{context} and the token after it. Give more text, or a model of a shorter context."
            )
        self._tokens = tokens
        self._context = context
        self._facts = dict(facts)

    def batches(
        self, position: Position, batch_size: int, seed: int
    ) -> Iterator[tuple[NDArray[np.int32], Position]]:
        """Iterate over batches; the position is the number of blocks before."""
        (seen,) = position
        first = np.arange(self._count) * self._context
        offsets = np.arange(self._context + 1)
        order, of_pass = first[:0], -1
        while True:
            starts = []
            for block in range(seen, seen + batch_size):
                if block // self._count != of_pass:
                    of_pass = block // self._count
                    order = np.random.default_rng([seed, of_pass]).permutation(first)
                starts.append(order[block % self._count])
            seen += batch_size
            yield self._tokens[np.array(starts)[:, None] + offsets].astype(np.int32), (seen,)

    def facts(self, position: Position) -> dict[str, Any]:
        """Return what identifies the text, and how often it has been passed."""
        return {**self._facts, "data_passes": position[0] / self._count}

    def skipped(self, position: Position) -> list[dict[str, str]]:
        """Return nothing: any bytes are text."""
        del position
        return []

    def state_dict(self, position: Position) -> dict[str, Any]:
        """Return what identifies the text."""
        del position
        return self._facts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the text is the same."""
        if dict(state) != self._facts:
            raise DataError(
                f"The run was trained on other text ({dict(state)}) than there is now "
                f"({self._facts}). Give it the data that it began with."
            )
