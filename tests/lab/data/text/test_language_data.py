from itertools import islice

import pytest
import torch

from isoflop.lab.data.text.pile import load_pile
from isoflop.lab.data.text.pysource import load_pysource


@pytest.fixture(params=["pile", "python_files"])
def load(request):
    """Return a function that loads the data anew."""
    folder = request.getfixturevalue(request.param)
    function = {"pile": load_pile, "python_files": load_pysource}[request.param]
    return lambda: function(folder, 16, 50)


def batches(data, count, *, size=8, epoch=0, seed=0, rank=0, world_size=1):
    found = data.train_batches(size, seed=seed, epoch=epoch, rank=rank, world_size=world_size)
    return list(islice(found, count))


def same(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_targets_are_the_next_tokens(load):
    ((inputs, targets),) = batches(load(), 1)
    assert inputs.shape == targets.shape == (8, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(load, world_size):
    alone = batches(load(), 5)
    shares = [batches(load(), 5, rank=rank, world_size=world_size) for rank in range(world_size)]
    for i, batch in enumerate(alone):
        for j, whole in enumerate(batch):
            joined = torch.empty_like(whole)
            for rank in range(world_size):
                joined[rank::world_size] = shares[rank][i][j]
            assert torch.equal(joined, whole)


def test_epochs_go_on_where_the_one_before_ended(load):
    whole = batches(load(), 9)
    data = load()
    assert same(batches(data, 2), whole[:2])
    assert same(batches(data, 1), whole[:1])  # asked again, as after scoring weights
    assert same(batches(data, 4), whole[:4])
    assert same(batches(data, 3, epoch=1), whole[4:7])
    assert same(batches(data, 2, epoch=2), whole[7:])


def test_another_object_continues_from_the_state(load):
    whole = batches(load(), 6)
    data = load()
    batches(data, 2)
    batches(data, 2, epoch=1)
    state, facts = data.state_dict(), data.facts()
    other = load()
    batches(other, 1)
    other.load_state_dict(state)
    assert other.facts() == facts
    assert same(batches(other.to(torch.device("cpu")), 2, epoch=2), whole[4:])


def test_the_state_of_a_process_is_that_of_all(load):
    data = load()
    batches(data, 3, rank=1, world_size=2)
    other = load()
    batches(other, 3)
    assert data.state_dict() == other.state_dict()
