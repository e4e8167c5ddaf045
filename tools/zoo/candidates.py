"""Which models there are to check, and which of them a seeded random sample takes."""

import random
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from isoflop.errors import IsoflopError
from isoflop.optional import require
from tools.zoo.tiny import text_architectures

Source = Literal["timm", "torchvision", "transformers"]
SOURCES: tuple[Source, ...] = get_args(Source)

SHARES: dict[str, float] = {"timm": 0.5, "torchvision": 0.2, "transformers": 0.3}
"""Part of the sample that each source gives.

In proportion to their names timm would take four fifths of the sample, most of them sizes of the
same few architectures, and torchvision one in twenty. Within a source every name is as likely as
any other.
"""


def candidates(source: Source) -> list[str]:
    """Return the specs of every model of a source, sorted.

    Raises:
        IsoflopError: The library is not installed.
    """
    if source == "timm":
        names = require("timm", "vision").list_models()
    elif source == "torchvision":
        models = require("torchvision.models", "vision")
        names = models.list_models(module=models)
    else:
        names = text_architectures()
    return [f"{source}:{name}" for name in sorted(names)]


def shuffled(specs: Iterable[str], source: str, seed: int) -> list[str]:
    """Return the specs in the random order of `seed`; a sample is the beginning of it."""
    order = sorted(specs)
    random.Random(f"{seed}:{source}").shuffle(order)
    return order


def quotas(sample: int, available: Mapping[str, int]) -> dict[str, int]:
    """Return how many models of each source a sample holds.

    The sample is spread by `SHARES` over the available sources; where one has too few models, the
    others give more.

    Raises:
        IsoflopError: The sample is empty.
    """
    if sample < 1:
        raise IsoflopError(f"--sample must be at least 1, not {sample}.")
    chosen = dict.fromkeys(available, 0)
    for _ in range(min(sample, sum(available.values()))):
        # The source that is furthest behind its share is next.
        source = min(
            (s for s in available if chosen[s] < available[s]),
            key=lambda s: (chosen[s] + 1) / SHARES[s],
        )
        chosen[source] += 1
    return chosen


class Sample:
    """A random sample that takes the next model for one that cannot be built.

    Which models it holds in the end depends on the seed and on which can be built, not on the
    order in which the checks finish.

    Attributes:
        size: How many models it is to hold, those that cannot be built left out.
        taken: The models handed out so far, by source.
    """

    def __init__(self, orders: Mapping[str, list[str]], wanted: Mapping[str, int]) -> None:
        self._orders = orders
        self._wanted = dict(wanted)
        self.size = sum(wanted.values())
        self.taken: dict[str, list[str]] = {source: [] for source in orders}

    @classmethod
    def draw(cls, sources: Iterable[Source], size: int, seed: int) -> "Sample":
        """Return the sample of a seed."""
        orders = {s: shuffled(candidates(s), s, seed) for s in sources}
        return cls(orders, quotas(size, {s: len(order) for s, order in orders.items()}))

    @classmethod
    def of(cls, specs: Iterable[str]) -> "Sample":
        """Return a sample of exactly these models, without replacement."""
        orders: dict[str, list[str]] = {}
        for spec in dict.fromkeys(specs):
            orders.setdefault(spec.partition(":")[0], []).append(spec)
        return cls(orders, {source: len(order) for source, order in orders.items()})

    @property
    def candidates(self) -> dict[str, int]:
        """How many models each source has."""
        return {source: len(order) for source, order in self._orders.items()}

    def next(self) -> str | None:
        """Return the next model to check, or None if there is none at present."""
        for source, order in self._orders.items():
            position = len(self.taken[source])
            if position < min(self._wanted[source], len(order)):
                self.taken[source].append(order[position])
                return order[position]
        return None

    def replace(self, spec: str) -> None:
        """Take one more model, in place of one that cannot be built."""
        self._wanted[next(s for s, taken in self.taken.items() if spec in taken)] += 1
