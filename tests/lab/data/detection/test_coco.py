import json

import numpy as np
import pytest
from PIL import Image

from isoflop.errors import DataError, IsoflopError
from isoflop.lab.data.detection import load_detection
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import train

SIZES = {"train": [(40, 60), (60, 30), (20, 20)], "val": [(30, 50), (50, 40)]}


def annotation(number, image, category, bbox, crowd=0):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": crowd,
        "segmentation": [],
    }


@pytest.fixture
def folder(tmp_path):
    """COCO's format with two categories, 3 and 17, and images numbered from 10 downwards."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, sizes in SIZES.items():
        images, things = [], []
        (root / f"{split}2017").mkdir()
        for index, (height, width) in enumerate(sizes):
            pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3))
            name = f"{index:012d}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{split}2017" / name)
            images.append({"id": 10 - index, "file_name": name, "height": height, "width": width})
            things.append(annotation(len(things) + 1, 10 - index, 17, [4, 6, 10, 8]))
        if split == "train":
            things = things[:2]  # the last has a crowd, a line and a point only
            things.append(annotation(90, 8, 3, [1, 1, 9, 9], crowd=1))
            things.append(annotation(91, 8, 3, [5, 1, 0, 9]))
            things.append(annotation(92, 9, 3, [20, 50, 30, 30]))  # reaches beyond the image
        data = {
            "images": images,
            "annotations": things,
            "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(data))
    return root


@pytest.fixture
def recipe():
    return get_recipe("coco").replace(num_classes=2, input_shape=(3, 32, 56), batch_size=1)


def edit(folder, change, split="train"):
    path = folder / "annotations" / f"instances_{split}2017.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_images_are_scaled_and_boxes_with_them(folder, recipe):
    data = load_detection(recipe, folder, 0)
    # Image 8 has no object to learn from, and images come in the order of their numbers.
    assert [data.train.name(i) for i in range(len(data.train))] == [
        "train2017/000000000001.jpg",
        "train2017/000000000000.jpg",
    ]
    # The longer side of the first would exceed 56.
    assert [data.train.scaled_size(i) for i in range(2)] == [(56, 28), (32, 48)]
    sample = data.train.read(0, None)
    assert sample.image.shape == (3, 56, 28)
    scale = 56 / 60
    np.testing.assert_allclose(
        sample.boxes, np.array([[4, 6, 14, 14], [20, 50, 30, 60]]) * scale, rtol=1e-6
    )
    assert sample.labels.tolist() == [1, 0]
    assert data.train.canvas([0, 1]) == (64, 64)
    assert len(data.test) == 2


def test_mirrored_images_have_mirrored_boxes(folder, recipe):
    data = load_detection(recipe, folder, 0)
    plain = data.train.read(1, None)
    turns = {}
    for seed in range(8):
        sample = data.train.read(1, np.random.default_rng(seed))
        mirrored = bool((sample.image != plain.image).any())
        turns[mirrored] = sample
        if mirrored:
            assert (sample.image.flip(-1) == plain.image).all()
            left, top, right, bottom = plain.boxes[0].tolist()
            assert sample.boxes[0].tolist() == pytest.approx([48 - right, top, 48 - left, bottom])
        else:
            assert (sample.boxes == plain.boxes).all()
    assert len(turns) == 2


def test_two_channels_are_refused(folder, recipe):
    for shape in ((2, 32, 56), (3, 56, 32)):
        with pytest.raises(IsoflopError, match="are read as"):
            load_detection(recipe.replace(input_shape=shape), folder, 0)


def damaged(folder, how):
    path = folder / "annotations" / "instances_train2017.json"
    if how == "cut":
        path.write_text(path.read_text()[:-40])
    elif how == "no file":
        path.unlink()
    elif how == "images":
        (folder / "val2017" / "000000000001.jpg").unlink()
    elif how == "folder":
        for image in (folder / "train2017").iterdir():
            image.unlink()
        (folder / "train2017").rmdir()
    elif how == "key":
        edit(folder, lambda data: data["images"][0].pop("height"))
    elif how == "stranger":
        edit(folder, lambda data: data["annotations"][0].update(image_id=77))
    elif how == "categories":
        edit(folder, lambda data: data["categories"][0].update(name="dog"))
    elif how == "objects":
        edit(folder, lambda data: data["annotations"].clear())
    elif how == "empty":
        edit(folder, lambda data: data["images"].clear())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "was not downloaded to its end"),
        ("no file", "There is no file"),
        ("images", "lacks 1 of the images"),
        ("folder", "There is no folder"),
        ("key", "is damaged"),
        ("stranger", "an annotation .* of an image or a category"),
        ("categories", "different categories"),
        ("objects", "No image .* has an object"),
        ("empty", "names no images"),
    ],
)
def test_missing_and_half_downloaded_data(folder, recipe, tmp_path, how, message):
    damaged(folder, how)
    with pytest.raises(DataError, match=message):
        train(recipe, tmp_path / "out", data=folder, workers=0, quiet=True)
    assert not (tmp_path / "out").exists()


def test_wrong_number_of_classes_and_no_folder(folder):
    recipe = get_recipe("coco")
    with pytest.raises(DataError, match=r"has 2 categories, but .* 80.*--num-classes 2"):
        load_detection(recipe, folder, 0)
    with pytest.raises(DataError, match=r"No data folder.*instances_\{train,val\}2017"):
        load_detection(recipe, None, 0)


def test_image_of_another_size_than_annotated(folder, recipe):
    edit(folder, lambda data: data["images"][0].update(width=61), split="train")
    data = load_detection(recipe, folder, 0)
    with pytest.raises(ValueError, match=r"\(40, 60\) pixels where annotations say \(40, 61\)"):
        data.train.read(1, None)
