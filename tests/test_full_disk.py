"""Commands on a disk that is full, or that may not be written to."""

import errno
import os

import pytest
from tests.commands import fails

import isoflop
from isoflop.errors import WriteError
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import checkpoint, train
from isoflop.model_specs import build_model


@pytest.fixture
def full(monkeypatch):
    def raising(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", raising)


COMMANDS = {
    "train": [
        "train",
        "digits",
        "--epochs",
        "1",
        "--base-width",
        "2",
        "--quiet",
        "--out",
        "OUT/run",
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("full")
def test_commands_say_so_in_a_line_and_leave_nothing(name, tmp_path, capsys):
    line = fails(capsys, *(part.replace("OUT", str(tmp_path)) for part in COMMANDS[name]))
    assert "No space left on device" in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_to(tmp_path, capsys, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "run"))

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    line = fails(capsys, "train", "digits", "--out", str(tmp_path / "run"))
    assert f"{tmp_path / 'run'} cannot be written: Read-only file system" in line


def test_a_run_whose_disk_fills_keeps_its_last_checkpoint(tmp_path, monkeypatch):
    recipe = get_recipe("digits").replace(base_width=2, epochs=2)
    calls, fsync = [], os.fsync

    def later(handle):
        calls.append(handle)
        if len(list((tmp_path / "run").glob("checkpoint-*"))) == 1 and len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", later)
    with pytest.raises(WriteError, match="No space"):
        train(recipe, tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").glob(".tmp-*"))
    monkeypatch.setattr(os, "fsync", fsync)
    assert checkpoint.load_checkpoint(tmp_path / "run") is not None
    resumed = train(recipe, tmp_path / "run", quiet=True, resume=True)
    straight = train(recipe, tmp_path / "straight", quiet=True)
    assert resumed["accuracy"] == straight["accuracy"]


def test_pytorchs_error_of_a_full_disk_is_one_of_the_system(tmp_path, monkeypatch):
    def failing(*args):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(checkpoint.torch, "save", failing)
    with pytest.raises(WriteError, match="checkpoint-000001 cannot be written"):
        checkpoint.save_checkpoint(tmp_path, 1, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full")
def test_saving_a_model_leaves_nothing(tmp_path):
    with pytest.raises(WriteError, match="No space"):
        isoflop.save(build_model("isoflop:resnet18_cifar"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
