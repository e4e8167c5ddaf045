import dataclasses
import json
import math
import shutil
from typing import Any

import pytest
import torch
from tests.lab.conftest import json_lines, sentences

import isoflop
from isoflop.errors import DamagedDataWarning, DataError, IsoflopError
from isoflop.lab.tasks import TASKS
from isoflop.lab.training import RunDirectory, load_run, restore, train
from isoflop.lab.training.checkpoint import load_checkpoint
from isoflop.masks import named_masks


def assert_same(one, two):
    """Assert that two runs ended with the same bits: weights, masks, optimizer, data, measures."""
    first, second = load_checkpoint(one), load_checkpoint(two)
    assert first is not None
    assert second is not None
    for key, value in first["model"].items():
        assert torch.equal(value, second["model"][key]), key
    for index, state in first["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, second["optimizer"]["state"][index][key])
    assert first["data"] == second["data"]
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, two)]
    for summary in summaries:
        del summary["seconds"], summary["spectra_seconds"]
    assert summaries[0] == summaries[1]


def test_wide_run(tiny_language, python_files, tmp_path):
    wide = isoflop.SparseWide(0.75)
    summary = train(
        tiny_language, tmp_path, transform=wide, method="set", data=python_files,
        spectra="every=1epoch", quiet=True,
    )  # fmt: skip
    assert summary["metric"] == "perplexity"
    assert math.log(summary["perplexity"]) == pytest.approx(summary["loss"])
    # Bytes and the ends of texts make the tokens, so there are a little more of these than bytes.
    assert 1 <= summary["bits_per_byte"] / (summary["loss"] / math.log(2)) < 1.02
    assert (summary["epochs"], summary["steps"]) == (3, 6)
    assert len(summary["data_sha256"]) == 64
    lines = RunDirectory(tmp_path).metrics()
    assert lines[-1]["test_perplexity"] == summary["perplexity"]
    assert summary["best_perplexity"] == min(line["test_perplexity"] for line in lines)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] < math.log(257) + 0.5
    # Each layer meets its own budget; attention and output layer, twice as wide, come on top.
    plan = isoflop.Plan.load(tmp_path / "plan.json")
    assert plan.scope == "layers"
    assert plan.layer_gap == 0
    assert {layer.nnz / math.prod(layer.shape) for layer in plan.sparse_layers} == {0.25}
    assert len(plan.sparse_layers) == 16
    assert len(RunDirectory(tmp_path).spectra()) == 4
    assert_saved(tmp_path)


def assert_saved(run):
    """Assert that the model of a run comes back, and can be saved and built again."""
    model, plan, source = load_run(run)
    assert (source.vocab_size, source.context) == (257, 16)
    isoflop.save(model, run / "model", plan=plan, source=source)
    loaded, _ = isoflop.load(run / "model")
    tokens = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("name", ["pile", "python_files"])
@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_interrupted_runs_end_with_the_same_bits(request, tmp_path, name, storage):
    folder = request.getfixturevalue(name)
    recipe = request.getfixturevalue({"pile": "tiny_pile"}.get(name, "tiny_language"))
    options: dict[str, Any] = {"method": "rigl", "sparsity": 0.5, "storage": storage, "quiet": True}
    options["data"] = folder
    train(recipe, tmp_path / "whole", **options)
    for epochs in (1, 2):
        train(recipe, tmp_path / "parts", **options, stop_after_epochs=epochs, resume=True)
    train(recipe, tmp_path / "parts", **options, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_compressed_wide_run(tiny_language, python_files, tmp_path):
    options: dict[str, Any] = {"storage": "compressed", "data": python_files, "quiet": True}
    train(tiny_language, tmp_path, transform=isoflop.SparseWide(0.5), method="set", **options)
    assert_saved(tmp_path)


def test_storages_agree(tiny_language, python_files, tmp_path):
    masks, losses = [], []
    for storage in ("masked", "compressed"):
        path = tmp_path / storage
        options: dict[str, Any] = {"storage": storage, "data": python_files, "quiet": True}
        summary = train(tiny_language, path, method="rigl", sparsity=0.5, **options)
        losses.append(summary["loss"])
        masks.append({name: mask for name, *_, mask in named_masks(restore(path).model)})
    # AdamW makes steps of rounding errors where a gradient is nearly zero, so that a few weights of
    # nearly equal magnitude change places.
    assert masks[0].keys() == masks[1].keys()
    for name, mask in masks[0].items():
        assert (mask != masks[1][name]).float().mean() < 0.01
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("method", ["snip", "gmp"])
def test_methods_that_score_or_prune(tiny_language, python_files, tmp_path, method):
    if method == "gmp":
        method = isoflop.GMP(update_every=2)
    options: dict[str, Any] = {"sparsity": 0.5, "data": python_files, "quiet": True}
    summary = train(tiny_language, tmp_path, method=method, **options)
    # The batch that was scored is trained on all the same.
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["data"]["position"] == [6 * 8]
    assert summary["density"] == pytest.approx(0.5, abs=0.01)


def test_damaged_records_are_listed(tiny_pile, own_pile, tmp_path):
    lines = json_lines(sentences(60, 1)).splitlines(keepends=True)
    lines[2] = b'{"text": "half\n'
    (own_pile / "train" / "00.jsonl.zst").unlink()
    (own_pile / "train" / "01.jsonl").write_bytes(b"".join(lines))
    with pytest.warns(DamagedDataWarning):
        summary = train(tiny_pile, tmp_path / "run", data=own_pile, quiet=True)
    assert summary["skipped"] == 1
    record = json.loads((tmp_path / "run" / "skipped.jsonl").read_text())
    assert (record["split"], record["file"]) == ("train", "train/01.jsonl:3")


def test_a_file_that_ends_too_early_loses_nothing(tiny_pile, own_pile, tmp_path):
    recipe = tiny_pile.replace(epochs=6, tokens=60 * 8 * 16)
    path = own_pile / "train" / "02.jsonl.gz"
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"02\.jsonl\.gz is damaged"):
        train(recipe, tmp_path / "run", data=own_pile, quiet=True)
    path.write_bytes(content)
    train(recipe, tmp_path / "run", data=own_pile, quiet=True, resume=True)
    train(recipe, tmp_path / "whole", data=own_pile, quiet=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_run_goes_on_with_its_own_text_only(tiny_language, python_files, tmp_path):
    own = tmp_path / "python"
    shutil.copytree(python_files, own)
    train(tiny_language, tmp_path / "run", data=own, quiet=True, stop_after_epochs=1)
    (own / "package0" / "module0.py").write_text("changed = True\n")
    with pytest.raises(DataError, match="other text"):
        train(tiny_language, tmp_path / "run", data=own, quiet=True, resume=True)


def test_data_that_cannot_be_leave_no_directory(tiny_language, tiny_pile, pile, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(DataError, match="No data folder"):
        train(tiny_pile, out, quiet=True)
    with pytest.raises(DataError, match="tokenizer has 300 tokens, the model of the recipe 257"):
        train(tiny_pile.replace(num_classes=257), out, data=pile, quiet=True)
    with pytest.raises(IsoflopError, match="no end"):
        train(dataclasses.replace(tiny_pile, tokens=None), out, data=pile, quiet=True)
    with pytest.raises(IsoflopError, match="multiple of 32"):
        train(tiny_language.replace(base_width=40), out, quiet=True)
    assert not out.exists()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_models_of_transformers(tiny_pile, name):
    recipe = dataclasses.replace(tiny_pile, model=f"hf:{name}", base_width=None)
    with torch.device("meta"):
        model: Any = TASKS.get("language").build_model(recipe)
    assert model.get_input_embeddings().weight.shape[0] == 300
    assert model.config.max_position_embeddings == 16
    assert model.config.use_cache is False
    assert model.config.eos_token_id == 299
