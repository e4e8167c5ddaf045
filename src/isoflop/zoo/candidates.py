"""Which models there are to check, and which of them a seeded random sample takes."""

import random
from collections.abc import Sequence
from typing import Literal, get_args

from isoflop.errors import IsoflopError
from isoflop.models.extras import require

Source = Literal["timm", "torchvision", "transformers"]
SOURCES: tuple[Source, ...] = get_args(Source)

SHARES: dict[Source, float] = {"timm": 0.5, "torchvision": 0.2, "transformers": 0.3}
"""Part of the sample that each source gives.

Strictly in proportion to their names timm would take four fifths, most of them sizes of the same
few architectures, and torchvision one in twenty.
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


def text_architectures() -> list[str]:
    """Return every model type of transformers that has a language-model head."""
    auto = require("transformers.models.auto.modeling_auto", "text")
    return sorted(
        {
            *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            *auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        }
    )


def shuffled(specs: Sequence[str], source: str, seed: int) -> list[str]:
    """Return the specs in the random order of `seed`; a sample is the beginning of it."""
    order = sorted(specs)
    random.Random(f"{seed}:{source}").shuffle(order)
    return order


def quotas(sample: int, available: dict[Source, int]) -> dict[Source, int]:
    """Return how many models of each source a sample holds.

    The sample is spread by `SHARES` over the sources in use; what a source lacks, the others give.

    Raises:
        IsoflopError: The sample is empty.
    """
    if sample < 1:
        raise IsoflopError(f"--sample must be at least 1, not {sample}.")
    chosen = dict.fromkeys(available, 0)
    for _ in range(min(sample, sum(available.values()))):
        open_ = [source for source in available if chosen[source] < available[source]]
        # The source that is furthest behind its share is next.
        source = min(open_, key=lambda s: ((chosen[s] + 1) / SHARES[s], s))
        chosen[source] += 1
    return chosen
