"""Sharded weights (FSDP2): masks are sharded too, and equal those of one process."""

import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.processes import run_workers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import isoflop
from isoflop.errors import IsoflopError, WorkersError
from isoflop.methods import METHODS, DropGrow

NAMES = ["rigl", "set", "snfs", "granet", "gmp", "sr_ste", "static"]
STEPS = 10


def build_method(name):
    cls: Any = METHODS.get(name)
    return cls(update_every=2) if issubclass(cls, DropGrow) or name == "gmp" else cls()


def build_model(mesh=None):
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    if mesh is not None:
        from torch.distributed.fsdp import fully_shard

        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
    return model


def train(name, size, rank, mesh=None):
    """Train on one's own share of the data; return weights, masks and updates, all of them."""
    torch.manual_seed(0)
    model = build_model(mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        build_method(name),
        isoflop.plain_plan(model, 0.5, dense_ends=False),
        total_steps=STEPS,
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(8, 6, dtype=torch.double, generator=generator)
        optimizer.zero_grad()
        for part in x.chunk(size)[rank].chunk(2):
            (model(part).square().mean() / 2).backward()
        # By the norm of what is there: gradients of masked weights are kept elsewhere.
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    state = {k: v.full_tensor() if mesh is not None else v for k, v in model.state_dict().items()}
    parts = {k: getattr(v, "to_local", lambda v=v: v)() for k, v in sparsifier.masks.items()}
    return state, sparsifier.history, {k: v.shape for k, v in parts.items()}


def find_torn_masks(rank, mesh):
    """Check that parts of masks that do not belong together are found."""
    model = build_model(mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = isoflop.sparsify(
        model, optimizer, "set", isoflop.plain_plan(model, 0.5, dense_ends=False), total_steps=STEPS
    )
    sparsifier.check_workers()
    mask: Any = sparsifier.masks["2.weight"]
    if rank == 1:
        mask.to_local().zero_()
    with pytest.raises(WorkersError, match=r"parts of the mask of '2.weight' do not add up"):
        sparsifier.check_workers()


def refuse_scores(mesh):
    """Check that what needs a copy of the model is refused before anything is changed."""
    model = build_model(mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scoring = isoflop.ScoringData(example_inputs=(1, 6))
    with pytest.raises(IsoflopError, match="sharded already"):
        isoflop.sparsify(model, optimizer, "set", 0.5, total_steps=STEPS, scoring=scoring)
    batch = (torch.zeros(1, 6), torch.zeros(1, 4))
    scoring = isoflop.ScoringData(batches=[batch], loss=nn.functional.mse_loss)
    with pytest.raises(IsoflopError, match="sharded already"):
        isoflop.sparsify(model, optimizer, "snip", 0.5, total_steps=STEPS, scoring=scoring)


def work(folder, size, rank):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    torch.save([train(name, size, rank, mesh) for name in NAMES], f"{folder}/{rank}.pt")
    find_torn_masks(rank, mesh)
    refuse_scores(mesh)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed training")
def test_sharded_training_equals_that_of_one_process(tmp_path):
    assert run_workers(__name__, 2, tmp_path, 2) == [0, 0]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for i, name in enumerate(NAMES):
        alone, history, whole = train(name, 1, 0)
        for rank in ranks:
            state, updates, parts = rank[i]
            assert updates == history
            torch.testing.assert_close(state, alone)
            # Each holds a part of every mask only.
            assert all(parts[key].numel() < whole[key].numel() for key in whole)
        for key, value in ranks[0][i][0].items():
            assert torch.equal(value, ranks[1][i][0][key])


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
