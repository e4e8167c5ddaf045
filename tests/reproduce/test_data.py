import pytest

from isoflop.errors import IsoflopError
from isoflop.reproduce import DataFolders


def test_folders():
    folders = DataFolders.parse(["here", "imagenet=/there"])
    assert folders.of("imagenet") == "/there"
    assert folders.of("coco") == "here"
    assert DataFolders.parse(["imagenet=x"]).of("coco") is None


@pytest.mark.parametrize("texts", [["a", "b"], ["coco=a", "coco=b"]])
def test_two_folders_for_the_same(texts):
    with pytest.raises(IsoflopError, match="two folders"):
        DataFolders.parse(texts)
