import itertools
import shutil

import numpy as np
import pytest
import torch

from isoflop.errors import DataError
from isoflop.lab.data.samples import SampleData, pad
from isoflop.lab.tasks import TASKS

NAMES = ["detection", "segmentation"]


def load(recipe, scenes, workers=0):
    data = TASKS.get(recipe.task).load(recipe, scenes, workers)
    assert isinstance(data, SampleData)
    return data


def first(data, count, **options):
    options = {"seed": 3, "epoch": 1, **options}
    return list(itertools.islice(data.train_batches(8, **options), count))


def flat(batches):
    """Return images and labels of all samples, one by one."""
    samples = []
    for images, targets in batches:
        for image, target in zip(images, targets, strict=True):
            labels = target["boxes"] if isinstance(target, dict) else target
            samples.append((image, labels))
    return samples


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for (image, labels), (image2, labels2) in zip(one, other, strict=True):
        assert torch.equal(image, image2)
        assert torch.equal(labels, labels2)


@pytest.mark.parametrize("name", NAMES)
def test_batches_depend_on_seed_and_epoch_alone(name, recipes, scenes):
    recipe = recipes[name]
    reference = flat(first(load(recipe, scenes), 3))
    assert len(reference) == 24
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert_same(flat(first(load(recipe, scenes, workers=2), 3)), reference)
    assert torch.equal(torch.get_rng_state(), before)
    for change in ({"seed": 4}, {"epoch": 2}):
        changed = flat(first(load(recipe, scenes), 3, **change))
        assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(changed, reference, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_batches(name, processes, recipes, scenes):
    recipe = recipes[name]
    whole = first(load(recipe, scenes), 3)
    shares = [
        first(load(recipe, scenes), 3, rank=rank, world_size=processes) for rank in range(processes)
    ]
    for step, batch in enumerate(whole):
        parts = [flat([share[step]]) for share in shares]
        together = [sample for turn in zip(*parts, strict=True) for sample in turn]
        assert_same(together, flat([batch]))


def test_a_pass_sees_every_sample_once_and_an_endless_one_again_and_again(recipes, scenes):
    data = load(recipes["detection"], scenes)
    assert data.samples == len(data.train)
    seen = [t["index"] for _, ts in data.train_batches(10, seed=0, epoch=0) for t in ts]
    assert sorted(seen) == list(range(len(data.train)))
    count = len(data.train)
    dropped = data.train_batches(10, seed=0, epoch=0, drop_last=True)
    assert sum(len(targets) for _, targets in dropped) == count - count % 10

    data = load(recipes["detection"].replace(steps=40), scenes)
    assert data.samples is None
    batches = itertools.islice(data.train_batches(count, seed=0, epoch=0), 3)
    orders = [[t["index"] for t in targets] for _, targets in batches]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert orders[0] == seen
    assert orders[0] != orders[1] != orders[2]
    batches = itertools.islice(data.train_batches(8, seed=0, epoch=0), 2 * count)
    assert all(len(targets) == 8 for _, targets in batches)


def damage(scenes, folder, name, tmp_path):
    copied = tmp_path / "damaged"
    shutil.copytree(scenes, copied)
    where = "train2017" if name == "detection" else "leftImg8bit/train/scenes"
    victim = sorted((copied / where).iterdir())[5]
    victim.write_bytes(victim.read_bytes()[:60])
    return copied, f"{victim.parent.name}/{victim.name}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_replaced_and_listed(
    name, workers, recipes, scenes, tmp_path, monkeypatch
):
    folder, victim = damage(scenes, scenes, name, tmp_path)
    data = load(recipes[name], folder, workers)
    with pytest.raises(DataError, match=r"cannot be read, which is over 1%"):
        first(data, 3)
    monkeypatch.setattr("isoflop.lab.data.reading.LIMIT", 0.1)
    data = load(recipes[name], folder, workers)
    batches = first(data, 3)
    assert [len(targets) for _, targets in batches] == [8, 8, 8]
    (entry,) = data.skipped
    assert entry["split"] == "train"
    assert entry["file"].endswith(victim)
    again = load(recipes[name], folder, workers)
    again.load_state_dict(data.state_dict())
    assert again.skipped == data.skipped


def test_padding():
    images = [torch.ones(2, 3, 4, dtype=torch.uint8), torch.full((2, 5, 2), 2, dtype=torch.uint8)]
    padded = pad(images, (6, 4), 9)
    assert padded.shape == (2, 2, 6, 4)
    assert (padded[0, :, :3] == 1).all()
    assert (padded[0, :, 3:] == 9).all()
    assert (padded[1, :, :5, :2] == 2).all()
    assert (padded[1, :, :, 2:] == 9).all()


def test_normalisation_leaves_padding_zero(recipes, scenes):
    data = load(recipes["segmentation"], scenes)
    images = torch.full((1, 1, 4, 4), 51, dtype=torch.uint8)
    out = data.normalize(images, [(3, 2)])
    inside = (51 / 255 - data.mean[0]) / data.std[0]
    assert out[0, 0, :3, :2].numpy() == pytest.approx(np.full((3, 2), inside))
    assert not out[0, 0, 3:].any()
    assert not out[0, 0, :, 2:].any()
