import errno
import os
import stat

import pytest

from isoflop.errors import WriteError
from isoflop.files import write_bytes, write_json, written_aside


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_folders_have_the_permissions_that_the_umask_leaves(umask, tmp_path):
    write_json(tmp_path / "file.json", {})
    assert mode(tmp_path / "file.json") == 0o666 & ~umask
    with written_aside(tmp_path / "folder") as aside:
        aside.mkdir()
        aside.rename(tmp_path / "folder")
    assert mode(tmp_path / "folder") == 0o777 & ~umask


def test_a_file_that_is_replaced_keeps_its_permissions_and_its_links(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert mode(real) == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(WriteError, match="file cannot be written: No space"):
        write_bytes(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_a_folder_that_cannot_be_filled_leaves_what_was_there(tmp_path):
    def fill():
        with written_aside(tmp_path / "folder") as aside:
            aside.mkdir()
            (aside / "new").write_text("")
            raise OSError("full")

    with pytest.raises(WriteError, match="folder cannot be written: full"):
        fill()
    assert list(tmp_path.iterdir()) == []
