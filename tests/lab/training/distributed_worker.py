"""Runs for the tests of distributed training; every process of `torchrun` executes this module."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import isoflop
from isoflop.errors import WorkersError
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import train
from isoflop.methods import SET, SNIP, SRSTE, GraNet, RigL


class Exact(nn.Sequential):
    """Computes in double precision, so that rounding decides no mask."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def net(
    num_classes: int = 10, in_channels: int = 1, base_width: int = 8, batch_norm: bool = False
) -> nn.Module:
    """Return a network; without BatchNorm, since that depends on who has which samples."""
    inner = 2 * base_width
    norm = nn.BatchNorm2d(inner) if batch_norm else nn.GroupNorm(2, inner)
    block = nn.Sequential(nn.Conv2d(base_width, inner, 3, stride=2, padding=1), nn.ReLU())
    return Exact(
        nn.Conv2d(in_channels, base_width, 3, padding=1),
        nn.GroupNorm(2, base_width),
        nn.ReLU(),
        nn.Sequential(block, norm),
        nn.Conv2d(inner, inner, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * inner, num_classes),
    ).double()


def batch_norm_net(num_classes: int = 10, in_channels: int = 1, base_width: int = 8) -> nn.Module:
    """Return the network with BatchNorm."""
    return net(num_classes, in_channels, base_width, batch_norm=True)


# The last of 6 batches has 67 samples, which do not divide evenly.
UNEVEN = dataclasses.replace(
    get_recipe("digits"), model="tests.lab.training.distributed_worker:net", base_width=4, epochs=2,
    batch_size=256, clip_norm=1.0,
    drop_last=False, update_every=4,
)  # fmt: skip

BATCH_NORM = UNEVEN.replace(model="tests.lab.training.distributed_worker:batch_norm_net")
HALF = get_recipe("digits").replace(base_width=4, epochs=2, batch_size=256, mixed_precision="bf16")

METHODS: dict[str, dict[str, Any]] = {
    "rigl": {"method": RigL(update_every=4), "sparsity": 0.7},
    "set": {"method": SET(update_every=4), "transform": isoflop.SparseWide(sparsity=0.75)},
    "granet": {"method": GraNet(update_every=4), "sparsity": 0.7},
    "sr_ste": {"method": SRSTE(), "sparsity": 0.7},
    "snip": {"method": SNIP(), "sparsity": 0.7},
    "dense": {"method": "dense"},
}

SHARDED = ("rigl", "granet", "sr_ste", "snip")
"""Of these, what is trained sharded as well."""


def run(name: str, out: Path, **options: Any) -> dict[str, Any]:
    """Train a network for two epochs."""
    return train(UNEVEN, out, **METHODS[name], quiet=True, **options)


def work(folder: Path, size: int) -> None:
    """Make all runs that the tests compare with those of one process."""
    for name in METHODS if size == 2 else ("rigl",):
        run(name, folder / name)
    for name in SHARDED if size == 2 else ("rigl",):
        run(name, folder / f"{name}-sharded", shard=True)
    # What one process began, these go on with; what these begin, one goes on with.
    run("rigl", folder / "taken", shard=True, resume=True)
    run("rigl", folder / "begun", shard=True, stop_after_epochs=1)
    for shard in (False, True):
        again = folder / ("again-sharded" if shard else "again")
        run("rigl", again, shard=shard, stop_after_epochs=1)
        run("rigl", again, shard=shard, resume=True)
    for shard in (False, True):
        options = {**METHODS["rigl"], "quiet": True, "shard": shard}
        train(BATCH_NORM, folder / f"norms-{shard}", **options)
    rank = torch.distributed.get_rank()
    try:
        train(UNEVEN, folder / "seeds", **METHODS["rigl"], quiet=True, seed=rank)
    except WorkersError as error:
        (folder / f"error-{rank}").write_text(str(error))
    if size == 2:
        # Accelerate keeps its first precision for the life of a process.
        AcceleratorState._reset_state()
        train(HALF, folder / "half", **METHODS["rigl"], quiet=True, shard=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
