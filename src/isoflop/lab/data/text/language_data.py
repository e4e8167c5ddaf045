"""What language models train on: batches of blocks from a source, and held-out text."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.lab.data.text.held_out import HeldOut
from isoflop.lab.data.text.tokenizer import TextTokenizer

Position = tuple[int, ...]
"""Where a source goes on; how to read the numbers is its own affair."""


class Source(Protocol):
    """Training text without an end, in batches of blocks that follow one another."""

    @property
    def start(self) -> Position:
        """Where the text begins."""
        ...

    def batches(
        self, position: Position, batch_size: int, seed: int
    ) -> Iterator[tuple[NDArray[np.int32], Position]]:
        """Iterate over batches from a position on.

        Args:
            position: That of the first block.
            batch_size: Blocks of a batch.
            seed: Seed of the run.

        Yields:
            Tokens `[batch_size, context + 1]`, whose last column is the first target of what
            follows, and the position behind the batch.
        """
        ...

    def facts(self, position: Position) -> dict[str, Any]:
        """Return what a summary says of the text up to a position."""
        ...

    def skipped(self, position: Position) -> list[dict[str, str]]:
        """Return the records up to a position that were damaged: `split`, `file` and `reason`."""
        ...

    def state_dict(self, position: Position) -> dict[str, Any]:
        """Return what is needed to go on at a position."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the text is that of a state, and take over what was found in it so far.

        Raises:
            DataError: It is other text.
        """
        ...


@dataclass
class LanguageData:
    """Data of a language model.

    The batches of an epoch begin where those of the epoch before ended, however often they are
    asked for. Every process reads all text and takes its share of each batch, so any number of
    processes sees the same batches, and one position says where all of them stand.

    Attributes:
        source: What is trained on.
        held_out: What is measured.
        tokenizer: What made the tokens.
        device: Where batches come.
    """

    source: Source
    held_out: HeldOut
    tokenizer: TextTokenizer
    device: torch.device | str = "cpu"
    _epoch: int = field(default=0, init=False)
    _start: Position = field(init=False)
    _position: Position = field(init=False)
    # Continued from epoch to epoch, as it takes time to find a position in a file again.
    _batches: Iterator[tuple[NDArray[np.int32], Position]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._start = self._position = self.source.start

    @property
    def samples(self) -> None:
        """None: the text starts again where it ends."""

    def to(self, device: torch.device) -> "LanguageData":
        """Return the data such that their batches come on `device`."""
        moved = dataclasses.replace(self, device=device)
        moved._epoch, moved._start, moved._position = self._epoch, self._start, self._position
        return moved

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over batches without end: inputs and targets, both `[batch, context]`.

        Args:
            batch_size: Blocks of a batch over all processes.
            seed: Seed of the run.
            epoch: Number of the epoch: the one whose batches came last, or the next.
            drop_last: Without effect; every batch is whole.
            rank: Number of this process, which gets every `world_size`-th block of a batch.
            world_size: Number of processes.
        """
        del drop_last
        assert epoch in (self._epoch, self._epoch + 1)
        if epoch > self._epoch:
            self._epoch, self._start = epoch, self._position
        else:
            self._batches = None
        self._position = self._start
        if self._batches is None:
            self._batches = self.source.batches(self._start, batch_size, seed)
        for tokens, position in self._batches:
            mine = torch.from_numpy(tokens[rank::world_size]).to(self.device).long()
            self._position = position
            yield mine[:, :-1].contiguous(), mine[:, 1:].contiguous()

    def evaluate(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Return `perplexity`, `loss` and `bits_per_byte` of the held-out text."""
        return self.held_out.evaluate(model, accelerator)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Damaged records, held-out ones first: `split`, `file` with their number, `reason`."""
        return [*self.held_out.skipped, *self.source.skipped(self._position)]

    def facts(self) -> dict[str, Any]:
        """Return what a summary says of the data."""
        return self.source.facts(self._position)

    def state_dict(self) -> dict[str, Any]:
        """Return where the next epoch begins."""
        position = self._position
        return {
            "epoch": self._epoch + 1,
            "position": list(position),
            "source": self.source.state_dict(position),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            DataError: The text is not that of the state.
        """
        self.source.load_state_dict(state["source"])
        self._epoch = state["epoch"]
        self._start = self._position = tuple(state["position"])
