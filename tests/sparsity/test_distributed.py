import contextlib
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.budgets import sparsify_arguments
from tests.processes import run_workers
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isoflop.errors import IsoflopError, WorkersError
from isoflop.methods import SET, SNFS, SNIP, SRSTE, GraNet, GraSP, RigL
from isoflop.sparsity import ScoringData, plain_plan
from isoflop.sparsity.api import sparsify

METHODS = {
    "rigl": RigL(update_every=2),
    "set": SET(update_every=2),
    "snfs": SNFS(update_every=2),
    "granet": GraNet(update_every=2, initial_density=0.8),
    "sr_ste": SRSTE(),
    "snip": SNIP(),
    "grasp": GraSP(temperature=1),
    "rigl/accumulated": RigL(update_every=2),
    "rigl/bucket views": RigL(update_every=2),
    "rigl/by hand": RigL(update_every=2),
    "rigl/compressed": RigL(update_every=2),
    "rigl/compressed/by hand": RigL(update_every=2),
    "rigl/compressed/accumulated": RigL(update_every=2),
    "set/compressed": SET(update_every=2),
    "snip/compressed": SNIP(),
}

HISTORY = {"rigl": 3, "set": 3, "snfs": 4, "granet": 4}


def train(name, rank, world_size):
    """Train on one's own share of the data; return masks, weights and updates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    samples = torch.randn(8, 6, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    sparsifier = sparsify(
        model,
        optimizer,
        METHODS[name],
        plain_plan(model, 0.5, dense_ends=False),
        total_steps=10,
        storage="compressed" if "compressed" in name else "masked",
        scoring=ScoringData(
            batches=[(samples.chunk(world_size)[rank], None)],
            loss=lambda outputs, _: outputs.square().mean(),
        ),
    )
    by_hand = "by hand" in name and world_size > 1
    wrapped = model
    if world_size > 1 and not by_hand:
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view="views" in name)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        x = torch.randn(8, 6, dtype=torch.double, generator=generator)
        optimizer.zero_grad()
        parts = x.chunk(world_size)[rank].chunk(2 if "accumulated" in name else 1)
        for i, part in enumerate(parts, 1):
            synced = contextlib.nullcontext()
            if isinstance(wrapped, DistributedDataParallel) and i < len(parts):
                synced = wrapped.no_sync()
            with synced:
                (wrapped(part).square().mean() / len(parts)).backward()
        for parameter in model.parameters() if by_hand else ():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size
        # By the norm of what is there: gradients of masked weights are kept elsewhere.
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return dict(model.state_dict()), sparsifier.history


def refuse_ramps():
    """Check that methods that change the number of weights are refused."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: Any = {"sparsity": 0.5, "dense_ends": False, "total_steps": 10}
    with pytest.raises(IsoflopError, match="DistributedDataParallel does not allow"):
        sparsify(
            model,
            optimizer,
            METHODS["granet"],
            storage="compressed",
            **sparsify_arguments(model, **options),
        )


def find_differences(rank, size):
    """Check that masks and random numbers that differ are found, on all workers alike."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: Any = {"sparsity": 0.5, "dense_ends": False, "total_steps": 10}
    sparsifier = sparsify(model, optimizer, "set", **sparsify_arguments(model, **options))
    sparsifier.check_workers()
    mask = sparsifier.masks["2.weight"]
    before = mask.clone()
    if rank == size - 1:
        mask.copy_(~mask)
    with pytest.raises(WorkersError, match=f"the mask of '2.weight' on worker {size - 1} is not"):
        sparsifier.check_workers()
    mask.copy_(before)
    sparsifier.check_workers()
    sparsifier.remove()

    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = sparsify(
        model, optimizer, "set", **sparsify_arguments(model, **options), seed=rank
    )
    with pytest.raises(WorkersError, match=r"the random number generator, the mask of '0.weight'"):
        sparsifier.check_workers()


def work(folder, size, rank):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    torch.save([train(name, rank, size) for name in METHODS], f"{folder}/{rank}.pt")
    refuse_ramps()
    find_differences(rank, size)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed training")
@pytest.mark.parametrize("size", [2, 4])
def test_workers_choose_the_masks_of_one(tmp_path, size):
    assert run_workers(__name__, size, tmp_path, size) == [0] * size
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for i, name in enumerate(METHODS):
        alone, history = train(name, 0, 1)
        assert len(history) == HISTORY.get(name.partition("/")[0], 0)
        for rank in ranks:
            state, other = rank[i]
            assert other == history
            torch.testing.assert_close(state, alone)
            for key, value in ranks[0][i][0].items():
                assert torch.equal(value, state[key])


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
