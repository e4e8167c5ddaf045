"""A run for the test of language models on several processes; `torchrun` executes this module."""

import dataclasses
import sys
from pathlib import Path

import torch.distributed as dist

from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import train

_TINY = get_recipe("pysource").replace(
    base_width=32, input_shape=(16,), batch_size=9, epochs=2, tokens=6 * 9 * 16, update_every=2,
    warmup_tokens=2 * 9 * 16, test_tokens=100,
)  # fmt: skip

RECIPE = dataclasses.replace(_TINY, dataset="pile", num_classes=300)
"""Six steps of nine blocks, which divide among no two processes."""


def run(out: Path, data: Path, *, accumulate: int = 1) -> None:
    """Train, interrupted once."""
    for epochs in (1, None):
        train(
            RECIPE, out, method="rigl", sparsity=0.5, data=data, accumulate=accumulate, quiet=True,
            resume=True, stop_after_epochs=epochs,
        )  # fmt: skip


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), accumulate=2)
    dist.destroy_process_group()
