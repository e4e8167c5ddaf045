import json
import shutil

import pytest
import torch

import isoflop
from isoflop.errors import RunDirectoryError
from isoflop.lab.training import build_transform, restore, train
from isoflop.lab.training.checkpoint import load_checkpoint
from isoflop.lab.training.observer import measure
from isoflop.masks import named_masks


@pytest.fixture
def run(tiny_recipe, tmp_path):
    wide = isoflop.SparseWide(sparsity=0.5, exclude=("stages.0.*",))
    recipe = tiny_recipe.replace(epochs=1)
    train(recipe, tmp_path / "run", transform=wide, method="rigl", quiet=True)
    return tmp_path / "run"


def assert_restored(path, run):
    restored = restore(path)
    assert (restored.epoch, restored.step) == (1, 21)
    state = load_checkpoint(run)
    assert state is not None
    own = restored.model.state_dict()
    assert own.keys() == state["model"].keys()
    assert all(torch.equal(own[key], value) for key, value in state["model"].items())
    return restored.model


def test_run_checkpoint_and_file(run):
    for path in (run, run / "checkpoint-000001", run / "checkpoint-000001" / "state.pt"):
        model = assert_restored(path, run)
        assert len(list(named_masks(model))) > 0


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
@pytest.mark.filterwarnings("ignore::isoflop.errors.PatternGapWarning")
def test_compressed_runs_come_back_masked(tiny_recipe, tmp_path, pattern):
    recipe = tiny_recipe.replace(epochs=1, base_width=8)
    options = {"transform": isoflop.SparseWide(sparsity=0.5), "method": "rigl", "quiet": True}
    options |= {"pattern": pattern, "spectra": "every=1epoch", "storage": "compressed"}
    summary = train(recipe, tmp_path, **options)
    restored = restore(tmp_path)
    assert (restored.epoch, restored.step) == (1, 21)
    masks = {name: mask for name, *_, mask in named_masks(restored.model)}
    plan = isoflop.Plan.load(tmp_path / "plan.json")
    assert {x.parameter: x.nnz for x in plan.sparse_layers} == {
        name: int(mask.sum()) for name, mask in masks.items()
    }
    for name, mask in masks.items():
        assert not restored.model.get_parameter(name)[~mask].any()
    profiled = isoflop.profile(restored.model, (1, *recipe.input_shape))
    assert profiled.macs == summary["macs"]
    # The spectra of the run are those of the restored model.
    lines = (tmp_path / "spectra.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["layers"].keys() == masks.keys()
    assert json.loads(lines[-1])["network"] == pytest.approx(measure(restored.model)["network"])


@pytest.mark.parametrize("name", ["parallel", "factorized", "doped"])
def test_other_transforms(tiny_recipe, tmp_path, name):
    recipe = tiny_recipe.replace(epochs=1)
    config = build_transform(name, sparsity=0.5)
    train(recipe, tmp_path, transform=config, method="static", quiet=True)
    assert_restored(tmp_path, tmp_path)


def test_models_without_a_transform(tiny_recipe, tmp_path):
    train(tiny_recipe.replace(epochs=1), tmp_path, method="set", sparsity=0.5, quiet=True)
    assert_restored(tmp_path, tmp_path)


def test_what_is_no_run(run, tmp_path):
    with pytest.raises(RunDirectoryError, match="no run directory"):
        restore(tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["base_width"] = 8
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunDirectoryError, match="does not fit"):
        restore(run)
    shutil.rmtree(run / "checkpoint-000001")
    with pytest.raises(RunDirectoryError, match="no checkpoint yet"):
        restore(run)
