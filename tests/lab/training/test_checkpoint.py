import pytest
import torch

from isoflop.errors import RunDirectoryError
from isoflop.lab.training import checkpoint
from isoflop.lab.training.checkpoint import load_checkpoint, save_checkpoint


def test_only_the_latest_is_kept(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for epoch in (1, 2, 10):
        save_checkpoint(tmp_path, epoch, {"epoch": epoch, "w": torch.arange(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000010"]
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["epoch"] == 10
    assert state["w"].tolist() == [0, 1, 2]


def test_kill_while_writing_leaves_the_former_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"epoch": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, {"epoch": 2})
    assert load_checkpoint(tmp_path) == {"epoch": 1}


def test_loading_runs_no_code(tmp_path):
    save_checkpoint(tmp_path, 1, {"code": print})
    with pytest.raises(RunDirectoryError, match="damaged"):
        load_checkpoint(tmp_path)


def test_damaged(tmp_path):
    save_checkpoint(tmp_path, 1, {"w": torch.zeros(1000)})
    path = tmp_path / "checkpoint-000001" / "state.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RunDirectoryError, match="damaged"):
        load_checkpoint(tmp_path)
