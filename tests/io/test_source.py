from typing import Any

import pytest
import torch

import isoflop
from isoflop.errors import RunDirectoryError
from isoflop.lab.training import load_run, train
from isoflop.lab.training.checkpoint import load_checkpoint
from isoflop.masks import named_masks


@pytest.mark.parametrize("transform", [isoflop.SparseWide(0.5), None])
def test_a_run_gives_its_model(tiny_recipe, tmp_path, transform):
    options: dict[str, Any] = {"transform": transform} if transform else {"sparsity": 0.5}
    train(tiny_recipe, tmp_path / "run", method="rigl", quiet=True, **options)
    model, plan, source = load_run(tmp_path / "run")
    state = load_checkpoint(tmp_path / "run")
    assert state is not None
    assert model.state_dict().keys() == state["model"].keys()
    assert all(torch.equal(v, state["model"][k]) for k, v in model.state_dict().items())
    assert list(named_masks(model))
    assert (plan is None) == (transform is None)
    assert source.spec == tiny_recipe.model
    assert model.eval()(source.example_inputs(batch=3)).shape == (3, 10)
    isoflop.save(model, tmp_path / "m", plan=plan, source=source)
    loaded, _ = isoflop.load(tmp_path / "m")
    assert all(torch.equal(v, state["model"][k]) for k, v in loaded.state_dict().items())


def test_runs_that_give_none(tmp_path, tiny_recipe):
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="no checkpoint"):
        load_run(tmp_path)
    train(tiny_recipe, tmp_path / "run", quiet=True, stop_after_epochs=1)
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="no run of this version"):
        load_run(tmp_path / "run")


def test_a_compressed_run_gives_its_model(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    options: dict[str, Any] = {"transform": isoflop.SparseWide(0.5), "storage": "compressed"}
    train(tiny_recipe, run, method="rigl", quiet=True, **options)
    model, plan, source = load_run(run)
    assert plan is not None
    nnz = {name: int(mask.sum()) for name, module, _, mask in named_masks(model)}
    assert sorted(nnz.values()) == sorted(layer.nnz for layer in plan.sparse_layers)
    isoflop.save(model, tmp_path / "m", plan=plan, source=source)
    loaded, _ = isoflop.load(tmp_path / "m")
    x = source.example_inputs(batch=2)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)
