import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from torchvision import datasets as torchvision_datasets

from isoflop.errors import DataError, UnknownNameError
from isoflop.lab.data.datasets import FASHION_FILES, ImageData, load_dataset, random_crop


def in_memory(name, folder=None):
    data = load_dataset(name, folder)
    assert isinstance(data, ImageData)
    return data


def write_idx(path, magic, array, *, packed):
    header = struct.pack(">i", magic) + struct.pack(f">{array.ndim}i", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    if packed:
        with gzip.open(path.with_name(path.name + ".gz"), "wb") as file:
            file.write(content)
    else:
        path.write_bytes(content)


@pytest.fixture
def fashion(tmp_path):
    def make(folder=tmp_path, *, packed=False):
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        for name, count in zip(FASHION_FILES, (30, 30, 20, 20), strict=True):
            if "images" in name:
                array, magic = random.integers(0, 256, (count, 28, 28)), 2051
            else:
                array, magic = np.arange(count) % 10, 2049
            write_idx(folder / name, magic, array, packed=packed)
        return folder

    return make


def write_cifar(folder, dataset, monkeypatch):
    """Write a small data set in CIFAR's real format, and make torchvision expect its checksums."""
    base = folder / dataset.base_folder
    base.mkdir(parents=True)
    fine = dataset.base_folder == "cifar-100-python"
    random = np.random.default_rng(0)
    all_images = {}

    def write(name, content):
        data = pickle.dumps(content, protocol=2)
        (base / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name):
        images = random.integers(0, 256, (20, 3072)).astype(np.uint8)
        labels = [int(label) for label in random.integers(0, 100 if fine else 10, 20)]
        all_images[name] = images
        content = {"data": images, "fine_labels" if fine else "labels": labels, "batch_label": name}
        return [name, write(name, content)]

    for attribute in ("train_list", "test_list"):
        names = [name for name, _ in getattr(dataset, attribute)]
        monkeypatch.setattr(dataset, attribute, [batch(name) for name in names])
    meta = dict(dataset.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: [str(i) for i in range(10)]})
    monkeypatch.setattr(dataset, "meta", meta)
    return all_images


def test_digits_are_split_once_and_for_all():
    first, second = in_memory("digits"), in_memory("digits")
    assert len(first.train_labels), len(first.test_labels) == (1347, 450)
    assert first.train_images.shape == (1347, 1, 8, 8)
    assert first.input_shape == (1, 8, 8)
    assert torch.equal(first.test_images, second.test_images)
    assert int(first.train_images.max()) == 16
    counts = torch.bincount(first.test_labels)
    assert counts.min() >= 43
    assert counts.max() <= 47
    normal = first.normalize(first.train_images)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_plain_and_gzipped(fashion, packed):
    data = in_memory("fashion-mnist", fashion(packed=packed))
    assert data.train_images.shape == (30, 1, 28, 28)
    assert data.test_labels.tolist() == [i % 10 for i in range(20)]
    assert data.train_images.dtype == torch.uint8


def test_fashion_mnist_as_torchvision_unpacks_it(fashion, tmp_path):
    fashion(tmp_path / "FashionMNIST" / "raw")
    assert len(in_memory("fashion-mnist", tmp_path).train_labels) == 30


@pytest.mark.parametrize("folder", [None, "absent"])
def test_missing_folder_says_what_is_needed(tmp_path, folder):
    with pytest.raises(DataError) as error:
        in_memory("fashion-mnist", folder and tmp_path / folder)
    for text in (*FASHION_FILES, "dataset-fashion-mnist", "FashionMNIST", "--data"):
        assert text in str(error.value)


def test_missing_file(fashion):
    folder = fashion()
    (folder / FASHION_FILES[3]).unlink()
    with pytest.raises(DataError, match=f"lacks {FASHION_FILES[3]}"):
        in_memory("fashion-mnist", folder)


def damaged(content):
    yield "truncated", content[:-1], "truncated"
    yield "too long", content + b"0", "truncated or damaged"
    yield "magic", b"\0\0\x08\x04" + content[4:], "magic number 2051"
    yield "header", content[:7], "magic number 2051"
    yield "empty", b"", "magic number 2051"
    yield "negative", content[:4] + b"\xff" * 4 + content[8:], "truncated or damaged"


@pytest.mark.parametrize("kind", range(6))
def test_damaged_images(fashion, kind):
    path = fashion() / FASHION_FILES[0]
    _, content, message = list(damaged(path.read_bytes()))[kind]
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        in_memory("fashion-mnist", path.parent)


@pytest.mark.parametrize("content", [b"no gzip", None])
def test_damaged_gzip(fashion, content):
    path = fashion(packed=True) / f"{FASHION_FILES[1]}.gz"
    path.write_bytes(path.read_bytes()[:-12] if content is None else content)
    with pytest.raises(DataError, match="cannot be read"):
        in_memory("fashion-mnist", path.parent)


def test_counts_of_images_and_labels_must_agree(fashion):
    folder = fashion()
    write_idx(folder / FASHION_FILES[1], 2049, np.zeros(29), packed=False)
    with pytest.raises(DataError, match="30 training images but 29 labels"):
        in_memory("fashion-mnist", folder)


def test_labels_must_be_classes(fashion):
    folder = fashion()
    write_idx(folder / FASHION_FILES[3], 2049, np.full(20, 10), packed=False)
    with pytest.raises(DataError, match="classes 0 to 9"):
        in_memory("fashion-mnist", folder)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_in_its_real_format(tmp_path, monkeypatch, name, classes):
    dataset = getattr(torchvision_datasets, name.upper())
    images = write_cifar(tmp_path, dataset, monkeypatch)
    data = in_memory(name, tmp_path)
    assert data.num_classes == classes
    assert data.input_shape == (3, 32, 32)
    expected = np.concatenate([images[entry[0]] for entry in dataset.train_list])
    assert (data.train_images.numpy().reshape(-1, 3072) == expected).all()
    assert len(data.test_labels) == 20
    batch, _ = next(data.train_batches(8, seed=0, epoch=0))
    assert batch.shape == (8, 3, 32, 32)
    assert batch.dtype == torch.float32


def test_cifar_missing_or_damaged(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="cifar-100-python"):
        in_memory("cifar100", tmp_path)
    write_cifar(tmp_path, torchvision_datasets.CIFAR10, monkeypatch)
    with open(tmp_path / "cifar-10-batches-py" / "data_batch_2", "ab") as file:
        file.write(b"0")
    with pytest.raises(DataError, match="damaged"):
        in_memory("cifar10", tmp_path)


def test_unknown_data_set():
    with pytest.raises(UnknownNameError, match="digits, fashion-mnist"):
        in_memory("mnist")


def test_epochs_are_reproducible_and_differ():
    data = in_memory("digits")

    def labels(seed, epoch):
        return torch.cat([y for _, y in data.train_batches(64, seed=seed, epoch=epoch)])

    assert torch.equal(labels(0, 3), labels(0, 3))
    assert not torch.equal(labels(0, 3), labels(0, 4))
    assert not torch.equal(labels(0, 3), labels(1, 3))
    assert torch.equal(labels(0, 3).bincount(), data.train_labels.bincount())
    assert not torch.equal(labels(0, 0), data.train_labels)


def test_last_batch():
    data = in_memory("digits")
    sizes = [len(y) for _, y in data.train_batches(64, seed=0, epoch=0)]
    assert sizes == [64] * 21 + [3]
    sizes = [len(y) for _, y in data.train_batches(64, seed=0, epoch=0, drop_last=True)]
    assert sizes == [64] * 21


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_processes_share_the_batches_of_one(fashion, tmp_path, monkeypatch, name, processes):
    if name == "fashion-mnist":
        fashion()
    else:
        write_cifar(tmp_path, getattr(torchvision_datasets, name.upper()), monkeypatch)
    data = in_memory(name, tmp_path)
    whole = data.train_batches(10, seed=1, epoch=2)
    parts = [
        data.train_batches(10, seed=1, epoch=2, rank=rank, world_size=processes)
        for rank in range(processes)
    ]
    for (images, labels), *own in zip(whole, *parts, strict=True):
        for rank, (own_images, own_labels) in enumerate(own):
            assert torch.equal(own_images, images[rank::processes])
            assert torch.equal(own_labels, labels[rank::processes])
    tests = [
        torch.cat([y for _, y in data.test_batches(3, rank=rank, world_size=processes)])
        for rank in range(processes)
    ]
    assert sorted(torch.cat(tests).tolist()) == sorted(data.test_labels.tolist())


def test_random_crop_is_that_of_each_image():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    shifts = torch.tensor([[0, 3], [2, 4]])
    cropped = random_crop(images, 2, shifts)
    for i in range(2):
        padded = torch.nn.functional.pad(images[i], (2, 2, 2, 2))
        top, left = shifts[:, i].tolist()
        assert torch.equal(cropped[i], padded[:, top : top + 4, left : left + 5])
    centre = torch.full((2, 2), 2)
    assert torch.equal(random_crop(images, 2, centre), images)


def test_augmentation_crops_and_mirrors(fashion):
    data = in_memory("fashion-mnist", fashion())
    plain = {}
    for index, image in enumerate(data.train_images):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        for top in range(5):
            for left in range(5):
                window = padded[:, top : top + 28, left : left + 28]
                plain[window.numpy().tobytes()] = (index, top, left, False)
                plain[window.flip(-1).contiguous().numpy().tobytes()] = (index, top, left, True)
    seen = set()
    for epoch in range(4):
        for images, _ in data.train_batches(8, seed=0, epoch=epoch):
            pixels = (images * data.std[0] + data.mean[0]) * 255
            for image in pixels.round().to(torch.uint8):
                seen.add(plain[image.numpy().tobytes()])
    assert {flip for *_, flip in seen} == {False, True}
    assert {top for _, top, _, _ in seen} == {left for _, _, left, _ in seen} == set(range(5))


def test_test_images_are_never_augmented(fashion):
    data = in_memory("fashion-mnist", fashion())
    images = torch.cat([x for x, _ in data.test_batches(7)])
    assert torch.equal(images, data.normalize(data.test_images))
