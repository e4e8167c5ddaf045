import pytest

from isoflop.errors import DataError

from .conftest import opened, write_folder


def test_classes_and_images_are_sorted(folder):
    data = opened(folder)
    assert data.train.classes == ("n00000000", "n00000001", "n00000002")
    assert len(data.train) == data.samples == 24
    assert len(data.test) == 15
    assert data.train.labels.tolist() == sorted([0, 1, 2] * 8)
    assert data.train.name(9) == "n00000001/train_1.JPEG"
    expected = (folder / "train" / "n00000001" / "train_1.JPEG").read_bytes()
    assert data.train.read(9) == expected


def test_names_that_are_not_ascii(tmp_path):
    write_folder(tmp_path, classes=1, train=1, test=1)
    image = tmp_path / "train" / "n00000000" / "train_0.JPEG"
    image.rename(image.with_name("Kürbis 南瓜.jpg"))
    (image.parent / "notes.txt").write_text("no image")
    train = opened(tmp_path).train
    assert [train.name(i) for i in range(len(train))] == ["n00000000/Kürbis 南瓜.jpg"]
    assert train.read(0)


def remove(path):
    for entry in path.iterdir():
        entry.unlink()
    path.rmdir()


def missing_split(folder):
    for path in (folder / "val").iterdir():
        remove(path)
    (folder / "val").rmdir()
    return "There is no folder .*val"


def empty_split(folder):
    missing_split(folder)
    (folder / "val").mkdir()
    return "no classes"


def flat_split(folder):
    (folder / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    return "sorted into a folder for each class"


def packed_class(folder):
    (folder / "train" / "n00000003.tar").write_bytes(b"")
    return "n00000003.tar, which is in no class"


def empty_class(folder):
    for path in (folder / "train" / "n00000001").iterdir():
        path.unlink()
    return "class n00000001 in .* has no images"


def missing_test_class(folder):
    remove(folder / "val" / "n00000001")
    return "val lacks 1 class of .*train: n00000001"


def missing_training_classes(folder):
    remove(folder / "train" / "n00000001")
    remove(folder / "train" / "n00000002")
    return "train lacks 2 classes of .*val: n00000001, n00000002"


@pytest.mark.parametrize(
    "damage",
    [
        missing_split, empty_split, flat_split, packed_class, empty_class, missing_test_class,
        missing_training_classes,
    ],
)  # fmt: skip
def test_incomplete_folders(tmp_path, damage):
    message = damage(write_folder(tmp_path, train=1, test=1))
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path)
    assert "train/CLASS/*.JPEG" in str(error.value)


@pytest.mark.parametrize("name", [None, "absent"])
def test_missing_folder(tmp_path, name):
    with pytest.raises(DataError, match="--data"):
        opened(name and tmp_path / name)
