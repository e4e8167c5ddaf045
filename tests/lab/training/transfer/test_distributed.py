"""Evaluation and training on two processes."""

import json

import pytest
import torch
import torch.distributed as dist
from tests.lab.training.test_distributed import TORCHRUN, launch
from tests.lab.training.transfer.worker import RECIPES, evaluate

from isoflop.lab.training import RunDirectory, restore, train
from isoflop.masks import named_masks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")


@pytest.fixture(scope="module")
def together(scenes, classifier, tmp_path_factory):
    """Folder of what two processes did."""
    folder = tmp_path_factory.mktemp("together")
    command = (
        "-m",
        "tests.lab.training.transfer.worker",
        str(scenes),
        str(classifier),
        str(folder),
    )
    launch(*TORCHRUN, "2", *command)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_measures_are_exactly_those_of_one_process(name, together, scenes):
    measures = json.loads((together / f"{name}.json").read_text())
    assert measures == evaluate(RECIPES[name], scenes)
    assert measures["ap50" if name == "detection" else "macc"] > 0


@pytest.mark.parametrize("name", RECIPES)
def test_masks_stay_and_work_is_counted(name, together, scenes, classifier, tmp_path):
    run = together / name
    expected = [
        mask for path, *_, mask in named_masks(restore(classifier).model) if "head" not in path
    ]
    found = [mask for *_, mask in named_masks(restore(run).model)]
    assert len(found) == len(expected) > 0
    assert all(torch.equal(mask, other) for mask, other in zip(found, expected, strict=True))
    options = {"backbone": classifier, "data": scenes, "workers": 0, "quiet": True}
    alone = train(RECIPES[name], tmp_path / "alone", **options)
    summary = RunDirectory(run).summary()
    assert summary is not None
    for key in ("macs", "dense_macs", "training_flops", "nnz", "steps", "backbone"):
        assert summary[key] == alone[key]
