"""Files are complete or absent, and as readable as the user wants new files to be."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from tests.commands import fails

from isoflop.errors import IsoflopError, WriteError
from isoflop.files import append_json, make_folder, new_file, write_bytes, write_json, written_aside
from isoflop.lab import cli
from isoflop.lab.training.checkpoint import STATE, load_checkpoint, save_checkpoint
from isoflop.lab.training.run_directory import RunDirectory


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_new_files_and_folders_have_the_permissions_that_the_umask_leaves(tmp_path, umask):
    write_bytes(tmp_path / "file", b"1")
    assert mode(tmp_path / "file") == 0o666 & ~umask
    save_checkpoint(tmp_path, 1, {"a": torch.ones(1)})
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert mode(checkpoint) == 0o777 & ~umask
    assert mode(checkpoint / STATE) == 0o666 & ~umask
    with RunDirectory(tmp_path / "run").claim({}, resume=False):
        assert mode(tmp_path / "run" / ".lock") == 0o666 & ~umask


def test_files_that_are_there_keep_theirs_and_links_lead_on(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"1")
    path.chmod(0o640)
    link.symlink_to(path)
    write_bytes(link, b"2")
    assert link.is_symlink()
    assert path.read_bytes() == b"2"
    assert mode(path) == 0o640
    write_bytes(Path(os.devnull), b"3")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "is no path"),
        (None, "is no path"),
        ("a\0b", "is no path"),
        (".", "is a folder"),
        ("none/file", "there is no folder"),
        ("file/file", "there is no folder"),
        ("n" * 300, "too long"),
    ],
)
def test_what_cannot_be_a_new_file(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=message):
        new_file(path)
    assert new_file("file") == Path("file")


def test_a_file_that_may_not_be_written_to_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"1")
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)  # root may write to all
    with pytest.raises(WriteError, match="Permission denied"):
        write_bytes(tmp_path / "file", b"2")
    assert (tmp_path / "file").read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_bytes(b"1")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(WriteError, match=r"file cannot be written: No space left on device\."):
        write_json(path, {"a": 1})
    assert path.read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_no_part_of_a_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"a": 1})

    class Full:
        def write(self, _data):
            full()

        def flush(self):
            full()

    save = torch.save
    # With a real full disk, a RuntimeError of PyTorch comes on top.
    monkeypatch.setattr(torch, "save", lambda state, _file: save(state, Full()))  # pyright: ignore
    with pytest.raises(WriteError, match="checkpoint-000002 cannot be written: No space"):
        save_checkpoint(tmp_path, 2, {"a": torch.ones(1000)})
    assert os.listdir(tmp_path) == ["checkpoint-000001"]
    assert load_checkpoint(tmp_path) == {"a": 1}


def test_errors_that_are_not_the_disks_pass(tmp_path):
    def fail():
        with written_aside(tmp_path / "a") as aside:
            aside.write_bytes(b"1")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert not os.listdir(tmp_path)


def test_a_read_only_file_system(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("builtins.open", refuse)
    for write in (
        lambda: write_bytes(tmp_path / "f", b""),
        lambda: append_json(tmp_path / "f", 1),
        lambda: write_bytes(tmp_path / "no" / "f", b""),
    ):
        with pytest.raises(IsoflopError, match="Read-only file system"):
            write()
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"):
        make_folder(tmp_path / "file" / "folder")
    with pytest.raises(WriteError, match="cannot be written"):
        write_bytes(tmp_path, b"")


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_run_that_cannot_begin_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, call
):
    out = tmp_path / "run"
    opened = os.open

    def refuse(path, *args, **kwargs):
        return full() if str(path).endswith(".lock") else opened(path, *args, **kwargs)

    monkeypatch.setattr(os, call, full if call == "fsync" else refuse)
    message = fails(
        capsys, "train", "digits", "--epochs", "1", "--base-width", "4", "--out", str(out)
    )
    assert "cannot be written: No space left on device." in message
    assert not out.exists()


def test_what_the_system_refuses_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli.Profile, "run", full)
    assert "No space left on device" in fails(capsys, "profile", "isoflop:resnet18_cifar")
