"""Proof that all workers of a distributed run have the same masks, without sending them."""

import zlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from isoflop.errors import WorkersError

_PRIME = 2**31 - 1
_FACTOR, _OFFSET = 1_103_515_245, 12_345


def checksum(mask: Tensor) -> Tensor:
    """Return a number, of type int64, that depends on which positions of a mask are set.

    Sums of integers depend on no order, so every device comes to the same number; no product exceeds
    2⁶², so none overflows.
    """
    positions = mask.flatten().nonzero().flatten() % _PRIME
    mixed = (positions * _FACTOR + _OFFSET) % _PRIME
    return (mixed * mixed % _PRIME).sum()


def checksum_of_generator(generator: torch.Generator) -> int:
    """Return a number that depends on the state of a random number generator."""
    return zlib.crc32(generator.get_state().numpy().tobytes())


def check_agreement(numbers: Mapping[str, Tensor | int], device: torch.device) -> None:
    """Raise on every worker unless all workers have the same numbers.

    Args:
        numbers: By what each number says, such as ``"the mask of 'fc.weight'"``; the same keys on
            all workers.
        device: Where the workers' process group exchanges tensors.

    Raises:
        WorkersError: Some differ; the message says which, and on which workers.
    """
    own = torch.stack([torch.as_tensor(number, device=device) for number in numbers.values()])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    differs = torch.stack(everyone) != everyone[0]
    if not bool(differs.any()):
        return
    workers = differs.any(1).nonzero().flatten().tolist()
    nouns = [noun for noun, other in zip(numbers, differs.any(0).tolist(), strict=True) if other]
    more = f" and {len(nouns) - 3} more" if len(nouns) > 3 else ""
    raise WorkersError(
        f"The workers have come apart: {', '.join(nouns[:3])}{more} on {_listed(workers)} "
        f"{'is' if len(nouns) == 1 else 'are'} not that of worker 0. Every worker must build the same "
        "model, call `sparsify` with the same arguments and seed, load the same checkpoint, and leave "
        "masks to the sparsifier."
    )


def _listed(workers: list[int]) -> str:
    noun = "worker" if len(workers) == 1 else "workers"
    return f"{noun} {', '.join(map(str, workers))}"
