import json

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.errors import IsoflopError
from isoflop.lab.data import ImageData
from isoflop.lab.data.scenes import GARMENTS, compose, write_scenes


@pytest.fixture
def fashion():
    """Ten white squares as garments, one of each class."""
    images = torch.zeros(10, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:24, 4:24] = 255
    labels = torch.arange(10)
    return ImageData(
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        num_classes=10,
        mean=(0.3,),
        std=(0.3,),
    )


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_objects_are_where_the_labels_are(fashion):
    covered = 0
    for seed in range(30):
        random = np.random.default_rng(seed)
        scene = compose(fashion.train_images[:, 0], fashion.train_labels, 64, random)
        assert scene.image.shape == scene.labels.shape == (64, 64)
        assert scene.image[scene.labels > 0].min() > scene.image[scene.labels == 0].max()
        for (left, top, right, bottom), name in scene.objects:
            inside = scene.labels[top:bottom, left:right]
            assert (inside == name + 1).mean() > 0.4
            # The box is tight.
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert (edge == name + 1).any()
        shown = {name + 1 for _, name in scene.objects}
        covered += len(set(np.unique(scene.labels)) - {0} - shown)
    # Garments that others cover for the most part are no objects.
    assert covered > 0


def test_both_formats_hold_the_same_scenes_every_time(fashion, tmp_path):
    for name in ("one", "two"):
        write_scenes(fashion, tmp_path / name, train=3, test=2, side=40)
    write_scenes(fashion, tmp_path / "other", train=3, test=2, side=40, seed=1)
    one, two, other = (files(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert one != other
    assert len(one) == 2 + 3 * (3 + 2)
    data = json.loads(one["annotations/instances_train2017.json"])
    assert [x["name"] for x in data["categories"]] == list(GARMENTS)
    for image in data["images"]:
        name = image["file_name"].removesuffix(".png")
        twin = f"leftImg8bit/train/scenes/{name}_leftImg8bit.png"
        assert one[f"train2017/{image['file_name']}"] == one[twin]
        labels = tmp_path / "one" / "gtFine" / "train" / "scenes" / f"{name}_gtFine_labelIds.png"
        pixels = np.asarray(Image.open(labels))
        assert pixels.shape == (image["height"], image["width"]) == (40, 40)
        for thing in data["annotations"]:
            if thing["image_id"] == image["id"]:
                left, top, width, height = thing["bbox"]
                inside = pixels[top : top + height, left : left + width]
                assert (inside == thing["category_id"] + 1).any()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["one", "other", "two"]


def test_nothing_is_overwritten_and_nothing_half_written(fashion, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(IsoflopError, match="is there already"):
        write_scenes(fashion, tmp_path / "there", train=1, test=1)
    with pytest.raises(IsoflopError, match="must be positive"):
        write_scenes(fashion, tmp_path / "new", train=0, test=1)

    def full(*_args):
        raise OSError("no space left")

    monkeypatch.setattr("isoflop.lab.data.scenes._png", full)
    with pytest.raises(OSError, match="no space left"):
        write_scenes(fashion, tmp_path / "new", train=1, test=1)
    assert [x.name for x in tmp_path.iterdir()] == ["there"]
