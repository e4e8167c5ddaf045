"""Training text in files, packed while it is read."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import DamagedDataWarning, DataError
from isoflop.lab.data.text.files import documents
from isoflop.lab.data.text.language_data import Position
from isoflop.lab.data.text.tokenizer import TextTokenizer

AT_A_TIME = 256
"""Documents that are made into tokens together, on all cores."""

MOST_DAMAGED = 0.01
"""Part of the records of a file that may be damaged, once more than `TOLERATED` are."""

TOLERATED = 10

T = TypeVar("T")

Place = tuple[int, int, int]
"""Number of the pass, of the file, and of the record in it."""


@dataclass(frozen=True)
class _Document:
    place: Place
    offset: int
    tokens: NDArray[np.int32]


class PackedStream:
    """Documents of files in their order, each followed by an end of text, cut into blocks.

    A position is a pass over the files, a file, a record in it, and a token of that.

    Args:
        folder: Where the files are.
        names: Names of the files in it, in order.
        tokenizer: What makes the tokens.
        context: Tokens of a block.
    """

    start: Position = (0, 0, 0, 0)

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        tokenizer: TextTokenizer,
        context: int,
    ) -> None:
        self._folder = folder
        self._names = list(names)
        self._tokenizer = tokenizer
        self._context = context
        self._damaged: dict[Place, str] = {}

    def batches(
        self, position: Position, batch_size: int, seed: int
    ) -> Iterator[tuple[NDArray[np.int32], Position]]:
        """Iterate over batches; each is made while the one before it is in use."""
        del seed  # the files have an order
        return _ahead(self._pack(position, batch_size))

    def facts(self, position: Position) -> dict[str, Any]:
        """Return of how many files this is, and how often these were passed."""
        passes = position[0] + position[1] / len(self._names)
        return {"data_files": len(self._names), "data_passes": passes}

    def skipped(self, position: Position) -> list[dict[str, str]]:
        """Return the damaged records before a position."""
        return [
            {"split": "train", "file": f"{self._names[file]}:{record + 1}", "reason": why}
            for (_, file, record), why in self._damaged_before(position)
        ]

    def state_dict(self, position: Position) -> dict[str, Any]:
        """Return which files these are, and what was damaged before a position."""
        damaged = [[list(place), why] for place, why in self._damaged_before(position)]
        return {"names": self._names, "damaged": damaged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the files have the same names."""
        if state["names"] != self._names:
            raise DataError(
                f"{self._folder} holds other files ({', '.join(self._names)}) than those that the "
                f"run began with ({', '.join(state['names'])}). Give it the same ones."
            )
        self._damaged = {tuple(place): why for place, why in state["damaged"]}

    def _pack(
        self, position: Position, batch_size: int
    ) -> Iterator[tuple[NDArray[np.int32], Position]]:
        step = batch_size * self._context
        offsets = np.arange(batch_size)[:, None] * self._context + np.arange(self._context + 1)
        queue: deque[_Document] = deque()
        size = total = 0
        for document in self._documents(position):
            if document.place[0] == 1 and total <= self._context and position == self.start:
                raise DataError(
                    f"The files in {self._folder} hold {total} tokens, too few for one block of the "
                    f"context {self._context} and the token after it. Give more text, or a model of "
                    "a shorter context."
                )
            queue.append(document)
            size += len(document.tokens)
            total += len(document.tokens)
            while size > step:  # the last target is the first token of the next batch
                tokens = self._front(queue, step + 1)
                first = self._drop(queue, step)
                size -= step
                yield tokens[offsets], (*first.place, first.offset)

    @staticmethod
    def _front(queue: Iterable[_Document], count: int) -> NDArray[np.int32]:
        parts = []
        for document in queue:
            parts.append(document.tokens[:count])
            count -= len(parts[-1])
            if not count:
                break
        return np.concatenate(parts)

    @staticmethod
    def _drop(queue: deque[_Document], count: int) -> _Document:
        """Remove `count` tokens from the front and return the document that is there then."""
        while count >= len(queue[0].tokens):
            count -= len(queue.popleft().tokens)
        first = queue[0]
        queue[0] = _Document(first.place, first.offset + count, first.tokens[count:])
        return queue[0]

    def _documents(self, position: Position) -> Iterator[_Document]:
        skip = position[3]
        records = self._records(position)
        while group := list(islice(records, AT_A_TIME)):
            places, texts = zip(*group, strict=True)
            for place, tokens in zip(places, self._tokenizer.documents(texts), strict=True):
                yield _Document(place, skip, tokens[skip:])
                skip = 0

    def _records(self, position: Position) -> Iterator[tuple[Place, str]]:
        """Iterate over texts from a position on, pass after pass, and note damaged records."""
        of_pass, file, first, _ = position
        while True:
            found = (file, first) != (0, 0)
            for index in range(file, len(self._names)):
                path = self._folder / self._names[index]
                for record, (text, why) in enumerate(documents(path, first), first):
                    place = of_pass, index, record
                    if text is not None:
                        found = True
                        yield place, text
                    elif of_pass == 0:
                        self._note(place, why)
                first = 0
            if not found:
                raise DataError(f"The files in {self._folder} hold not one document.")
            of_pass, file = of_pass + 1, 0

    def _note(self, place: Place, why: str) -> None:
        self._damaged[place] = why
        _, file, record = place
        of_file = sum(other[1] == file for other in self._damaged)
        check_damaged(self._folder / self._names[file], of_file, record, why)

    def _damaged_before(self, position: Position) -> list[tuple[Place, str]]:
        return sorted(item for item in self._damaged.items() if item[0] < position[:3])


def check_damaged(path: Path, damaged: int, record: int, why: str) -> None:
    """Warn of a damaged record, the first being 0, and stop if there are too many in its file.

    Raises:
        DataError: More than 1 % of the records so far are damaged, and more than ten.
    """
    if damaged > max(TOLERATED, MOST_DAMAGED * (record + 1)):
        raise DataError(
            f"{damaged} of the first {record + 1} records in {path} are damaged, the last one: {why}. "
            "Is it a file of JSON lines with a field `text`, downloaded to its end?"
        )
    warnings.warn(
        f"Record {record + 1} of {path} is left out: {why}.", DamagedDataWarning, stacklevel=2
    )


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Iterate over items, each made in another thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
