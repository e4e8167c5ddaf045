import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.errors import DataError, IsoflopError
from isoflop.lab.data.segmentation import load_segmentation
from isoflop.lab.data.segmentation.cityscapes import IGNORED
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import train

SHAPE = (48, 64)


@pytest.fixture
def folder(tmp_path):
    """Cityscapes' format: 3 training images of 2 cities and 2 test images of another."""
    root = tmp_path / "cityscapes"
    cities = {"train": ["aachen", "aachen", "bochum"], "val": ["lindau"] * 2}
    for split, names in cities.items():
        for number, city in enumerate(names):
            labels = np.random.default_rng(number).integers(0, 34, (6, 8)).repeat(8, 0).repeat(8, 1)
            for tree, end, pixels in (
                ("gtFine", "gtFine_labelIds", labels.astype(np.uint8)),
                ("leftImg8bit", "leftImg8bit", np.stack([labels * 7] * 3, 2).astype(np.uint8)),
            ):
                place = root / tree / split / city
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place / f"{city}_{number:06d}_000019_{end}.png")
    return root


@pytest.fixture
def recipe():
    return get_recipe("cityscapes").replace(
        input_shape=(3, 32, 32), steps=2, epochs=1, batch_size=2
    )


def test_classes_are_those_of_the_benchmark(folder, recipe):
    data = load_segmentation(recipe, folder, 0)
    assert [data.train.name(i).rpartition("/")[2] for i in range(3)] == [
        "aachen_000000_000019_leftImg8bit.png",
        "aachen_000001_000019_leftImg8bit.png",
        "bochum_000002_000019_leftImg8bit.png",
    ]
    sample = data.test.read(0, None)
    assert sample.image.shape == (3, *SHAPE)
    numbers = sample.image[0] // 7
    names = {7: 0, 8: 1, 11: 2, 19: 6, 26: 13, 28: 15, 31: 16, 33: 18, 0: IGNORED, 29: IGNORED}
    checked = 0
    for number, label in names.items():
        where = numbers == number
        assert (sample.labels[where] == label).all()
        checked += int(where.any())
    assert checked >= 5
    assert set(data.train.table.tolist()) == {*range(19), IGNORED}


def test_windows_cut_image_and_labels_alike(folder, recipe):
    data = load_segmentation(recipe, folder, 0)
    sizes, whole = set(), data.train.read(0, None)
    for seed in range(20):
        sample = data.train.read(0, np.random.default_rng(seed))
        assert sample.size[0] <= 32
        assert sample.size[1] <= 32
        sizes.add(sample.size)
        # Inside of the squares of one label, the image tells the label.
        table = torch.from_numpy(data.train.table)
        told = table[(sample.image[0].float() / 7).round().long()]
        inside = (sample.image[0] % 7 == 0) & (told != IGNORED) & (sample.labels != IGNORED)
        agree = (told == sample.labels)[inside].float().mean()
        assert agree > 0.8
    # At half the size, the image is smaller than the window.
    assert any(size[0] < 32 for size in sizes)
    assert (32, 32) in sizes
    assert (whole.image == data.train.read(0, None).image).all()
    assert len(torch.unique(whole.labels)) > 5


def test_batches_have_the_size_of_the_crop(folder, recipe):
    data = load_segmentation(recipe, folder, 0)
    images, labels = next(data.train_batches(2, seed=0, epoch=0))
    assert images.shape == (2, 3, 32, 32)
    assert labels.shape == (2, 32, 32)
    tests = list(data.test_batches(rank=0, world_size=1))
    assert [batch[0].shape for batch in tests] == [(1, 3, 64, 64)] * 2
    assert (tests[0][1][:, 48:] == IGNORED).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no labels", "lacks the labels of 1 of 3 samples of 'train'"),
        ("no image", "lacks the image of 1 of 2 samples of 'val'"),
        ("no split", "There is no folder"),
        ("empty", "has no files CITY"),
    ],
)
def test_missing_and_half_unpacked_data(folder, recipe, tmp_path, how, message):
    if how == "no labels":
        next((folder / "gtFine" / "train" / "bochum").iterdir()).unlink()
    elif how == "no image":
        next((folder / "leftImg8bit" / "val" / "lindau").iterdir()).unlink()
    elif how == "no split":
        (folder / "gtFine" / "val").rename(folder / "gtFine" / "test")
    else:
        for city in (folder / "leftImg8bit" / "train").iterdir():
            for image in city.iterdir():
                image.unlink()
    with pytest.raises(DataError, match=message):
        train(recipe, tmp_path / "out", data=folder, workers=0, quiet=True)
    assert not (tmp_path / "out").exists()


def test_classes_folder_and_shape_that_do_not_fit(folder, recipe):
    with pytest.raises(DataError, match=r"has 19 classes, but .* 20"):
        load_segmentation(recipe.replace(num_classes=20), folder, 0)
    with pytest.raises(DataError, match="No data folder"):
        load_segmentation(recipe, None, 0)
    with pytest.raises(IsoflopError, match="are read as"):
        load_segmentation(recipe.replace(input_shape=(1, 32, 32)), folder, 0)


def test_labels_in_colours_cannot_be_read(folder, recipe):
    path = sorted((folder / "gtFine" / "train" / "aachen").iterdir())[0]
    Image.open(path).convert("RGB").save(path)
    data = load_segmentation(recipe, folder, 0)
    with pytest.raises(ValueError, match="no numbers of a byte, but RGB"):
        data.train.read(0, None)
