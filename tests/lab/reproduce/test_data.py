import pytest

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.lab.reproduce import DataFolders


def test_folders():
    folders = DataFolders.parse(["here", "imagenet=/there"])
    assert folders.of("imagenet") == "/there"
    assert folders.of("coco") == "here"
    assert DataFolders.parse(["imagenet=x"]).of("coco") is None


@pytest.mark.parametrize("texts", [["a", "b"], ["coco=a", "coco=b"]])
def test_two_folders_for_the_same(texts):
    with pytest.raises(IsoflopError, match="two folders"):
        DataFolders.parse(texts)


def test_names_of_data_sets_are_checked():
    assert DataFolders.parse(["ImageNet=/there"]).of("imagenet") == "/there"
    with pytest.raises(UnknownNameError, match="Did you mean 'imagenet'"):
        DataFolders.parse(["imagnet=/there"])
