"""Training on images in files, by the command line."""

import json

import pytest
from tests.commands import fails

from isoflop.lab.cli import main
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import RunDirectory, train

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

MODEL = """
from torch import nn
def tiny(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, num_classes))
"""


@pytest.fixture
def arguments(damaged, tmp_path, monkeypatch):
    """Arguments of a short run, but for its directory."""
    (tmp_path / "tiny_models.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    return [
        "train", "imagenet", "--model", "tiny_models:tiny", "--num-classes", "2", "--epochs", "2",
        "--batch-size", "32", "--sparsity", "0.5", "--update-every", "2", "--method", "rigl",
        "--data", str(damaged), "--json",
    ]  # fmt: skip


def test_train_and_resume(arguments, damaged, tmp_path, capsys):
    main([*arguments, "--workers", "2", "--out", str(tmp_path / "whole")])
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == 2 * 3  # of 120 images the last 24 are left out
    assert summary["skipped"] == 2
    skipped = (tmp_path / "whole" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in skipped] == [
        "val/n00000000/val_3.JPEG", "train/n00000001/train_7.JPEG",
    ]  # fmt: skip

    recipe = get_recipe("imagenet").replace(
        model="tiny_models:tiny", num_classes=2, epochs=2, batch_size=32, update_every=2
    )
    options = {"sparsity": 0.5, "method": "rigl", "data": damaged, "quiet": True}
    train(recipe, tmp_path / "parts", **options, stop_after_epochs=1, workers=0)
    main([*arguments, "--resume", "--workers", "1", "--out", str(tmp_path / "parts")])
    resumed = json.loads(capsys.readouterr().out)
    lines = [RunDirectory(tmp_path / name).metrics() for name in ("whole", "parts")]
    for entry in (summary, resumed, *lines[0], *lines[1]):
        del entry["seconds"]
    assert resumed == summary
    assert lines[0] == lines[1]
    names = [tmp_path / name / "skipped.jsonl" for name in ("whole", "parts")]
    assert names[0].read_text() == names[1].read_text()

    main([*arguments[:-1], "--resume", "--out", str(tmp_path / "whole")])
    assert "2 samples could not be read" in capsys.readouterr().out


def test_mistakes_leave_nothing_behind(arguments, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    for change, message in (
        (["--num-classes", "1000"], "--num-classes 2"),
        (["--data", str(tmp_path / "absent")], "train/CLASS"),
        (["--workers", "-1"], "workers"),
        (["--model", "isoflop:resnet19"], "resnet18"),
        (["--base-width", "8"], "base_width"),
    ):
        assert message in fails(capsys, *arguments, *change, *out)
    assert not (tmp_path / "run").exists()
