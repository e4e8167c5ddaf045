import dataclasses
import itertools
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.processes import run_workers
from torch import nn

from isoflop.errors import DataError, IsoflopError
from isoflop.lab.data.datasets import load_dataset
from isoflop.lab.data.images import ImageFolderData
from isoflop.lab.recipes import get_recipe

# Python 3.12 warns of forks in a process with threads, as PyTorch's worker processes are started.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    # On a machine with a single core.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

EPOCH: dict[str, Any] = {"seed": 1, "epoch": 2}

RECIPE = get_recipe("imagenet").replace(
    num_classes=3, input_shape=(3, 16, 16), scale_jitter=(18, 30), test_scale=20
)


def small(data, workers=0):
    """Return a data set, or that in a folder, with small views."""
    if not isinstance(data, ImageFolderData):
        data = load_dataset("imagenet", data)
        assert isinstance(data, ImageFolderData)
    return data.configured(RECIPE.replace(num_classes=len(data.train.classes)), workers)


def collect(batches):
    parts = list(batches)
    return [part[0] for part in parts], [part[1].tolist() for part in parts]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


class Brightness(nn.Module):
    """Takes bright images for class 1 and dark ones for class 0."""

    def forward(self, images):
        bright = images.mean((1, 2, 3))
        return torch.stack([-bright, bright], 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(data, workers):
    images, labels = collect(small(data).train_batches(7, **EPOCH))
    others, other_labels = collect(small(data, workers).train_batches(7, **EPOCH))
    assert labels == other_labels
    assert all(torch.equal(one, two) for one, two in zip(images, others, strict=True))
    tests, _ = collect(small(data).test_batches(4))
    others, _ = collect(small(data, workers).test_batches(4))
    assert all(torch.equal(one, two) for one, two in zip(tests, others, strict=True))


def test_batches_are_normalized_images_with_channels_last(data):
    images, labels = next(small(data).train_batches(7, seed=0, epoch=0))
    assert images.shape == (7, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.long
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    pixels = (images.permute(0, 2, 3, 1) * std + mean) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    assert pixels.min() >= 0
    assert pixels.max() <= 255.001


def test_the_models_random_numbers_are_left_alone(data):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    collect(small(data, 1).train_batches(7, seed=0, epoch=0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_sees_every_image_once(data, drop_last):
    counts = torch.bincount(
        torch.tensor(flat(collect(small(data).train_batches(6, seed=0, epoch=0))[1]))
    )
    assert counts.tolist() == [8, 8, 8]
    batches = small(data).train_batches(7, seed=0, epoch=1, drop_last=drop_last)
    assert [len(part) for part in collect(batches)[1]] == [7, 7, 7] + [3] * (not drop_last)


def test_epochs_and_seeds_differ(data):
    runs = [
        collect(small(data).train_batches(24, seed=s, epoch=e)) for s, e in [(0, 0), (0, 1), (1, 0)]
    ]
    labels = [run[1] for run in runs]
    assert labels[0] != labels[1] != labels[2] != labels[0]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(data, processes):
    images, labels = collect(small(data).train_batches(10, **EPOCH))
    parts = [
        collect(small(data).train_batches(10, **EPOCH, rank=rank, world_size=processes))
        for rank in range(processes)
    ]
    for number, (whole, whole_labels) in enumerate(zip(images, labels, strict=True)):
        for rank, (own, own_labels) in enumerate(parts):
            assert torch.equal(own[number], whole[rank::processes])
            assert own_labels[number] == whole_labels[rank::processes]
    tests = [
        collect(small(data).test_batches(4, rank=rank, world_size=processes))[1]
        for rank in range(processes)
    ]
    assert len({len(batches) for batches in tests}) == 1
    assert sorted(flat(flat(tests))) == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_replaced_and_listed(damaged, workers):
    data = small(damaged, workers)
    for epoch in range(2):
        images, labels = collect(data.train_batches(16, seed=0, epoch=epoch))
        assert [len(part) for part in images] == [16] * 7 + [8]
        # Its place is taken by the next one, of the same class here.
        assert sorted(flat(labels)) == [0] * 60 + [1] * 60
    [entry] = data.skipped
    assert (entry["split"], entry["file"]) == ("train", "train/n00000001/train_7.JPEG")
    assert entry["reason"] == "ValueError: this is no image of a known format"


def test_damaged_test_images_do_not_count(damaged):
    for path in (damaged / "val").glob("*/*.JPEG"):
        if path.name != "val_3.JPEG":
            path.write_bytes((damaged / "train" / "n00000000" / "train_0.JPEG").read_bytes())
    data = small(damaged)
    measures = data.evaluate(Brightness(), Processes(0, 1))
    # All readable ones look alike: those of one class are right, 54 or 55 of 109.
    assert measures["accuracy"] in (pytest.approx(5400 / 109), pytest.approx(5500 / 109))
    assert [entry["file"] for entry in data.skipped] == ["val/n00000000/val_3.JPEG"]
    assert "truncated" in data.skipped[0]["reason"]


def test_the_list_is_part_of_the_state(damaged):
    data = small(damaged)
    collect(data.train_batches(60, seed=0, epoch=0))
    fresh = small(damaged)
    fresh.load_state_dict(data.state_dict())
    assert fresh.skipped == data.skipped != []


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_images(damaged, workers):
    (damaged / "train" / "n00000001" / "train_8.JPEG").write_bytes(b"")
    data = small(damaged, workers)
    with pytest.raises(DataError, match=r"2 images of 'train'.* over 1%"):
        collect(data.train_batches(16, seed=0, epoch=0))


def test_nothing_but_damaged_images(folder, tmp_path):
    data = small(folder)
    files = dataclasses.replace(data.train, folder=tmp_path / "moved away")
    data = dataclasses.replace(data, train=files)
    with pytest.raises(DataError, match="FileNotFoundError"):
        collect(data.train_batches(16, seed=0, epoch=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1000}, "--num-classes 3"),
        ({"input_shape": (1, 16, 16)}, "not as"),
        ({"input_shape": (3, 16, 8)}, "not as"),
        ({"input_shape": (3, 19, 19)}, "must not be smaller than the 19 pixels"),
        ({"test_scale": 15}, "must not be smaller than the 16 pixels"),
    ],
)
def test_recipes_that_do_not_fit(data, change, message):
    with pytest.raises(IsoflopError, match=message):
        data.configured(RECIPE.replace(**change))


def test_recipe_without_scales(data):
    with pytest.raises(IsoflopError, match="scale_jitter"):
        data.configured(dataclasses.replace(RECIPE, scale_jitter=None))


class Processes:
    """What the evaluation uses of Accelerate."""

    def __init__(self, rank, world_size):
        self.process_index, self.num_processes = rank, world_size
        self.device = torch.device("cpu")

    def reduce(self, counts):
        if self.num_processes > 1:
            dist.all_reduce(counts)
        return counts


def measure(folder, rank, world_size):
    """Return what a process knows after an epoch."""
    data = small(folder)
    collect(data.train_batches(16, seed=0, epoch=0, rank=rank, world_size=world_size))
    return data.evaluate(Brightness(), Processes(rank, world_size)), data.skipped


def work(folder, out, rank, world_size):
    dist.init_process_group("gloo", f"file://{out}/store", rank=rank, world_size=world_size)
    torch.save(measure(folder, rank, world_size), f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed training")
def test_processes_join_their_counts_and_lists(damaged, tmp_path):
    assert run_workers(__name__, 2, damaged, tmp_path, 2) == [0, 0]
    expected = measures, skipped = measure(damaged, 0, 1)
    assert 0 < measures["accuracy"] < 100
    assert len(skipped) == 2
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [expected] * 2


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[4]), int(sys.argv[3]))
