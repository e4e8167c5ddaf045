import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import isoflop
from isoflop.errors import DataError, IsoflopError, RunDirectoryError, UnknownNameError
from isoflop.files import read_json, write_json
from isoflop.kernels import SparseLayer, available
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import RunDirectory, kernels, restore, train
from isoflop.lab.training.checkpoint import load_checkpoint
from isoflop.lab.training.mask_history import unpack
from isoflop.masks import named_masks
from isoflop.methods import METHODS
from isoflop.patterns import parse_pattern

WIDE = isoflop.SparseWide(sparsity=0.75)
SAMPLES = 21 * 64  # of an epoch; the last batch is left out


def files(path):
    return {p.name for p in path.iterdir() if not p.name.startswith(".")}


def untimed(metrics):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics]


def assert_same(one, two):
    """Assert that two runs ended with the same bits: weights, masks, optimizer, metrics."""
    first, second = load_checkpoint(one), load_checkpoint(two)
    assert first is not None
    assert second is not None
    for key in first["model"]:
        assert torch.equal(first["model"][key], second["model"][key]), key
    for index, state in first["optimizer"]["state"].items():
        other = second["optimizer"]["state"][index]["momentum_buffer"]
        assert torch.equal(state["momentum_buffer"], other)
    assert torch.equal(first["sparsifier"]["generator"], second["sparsifier"]["generator"])
    assert first["sparsifier"]["history"] == second["sparsifier"]["history"]
    metrics = [untimed(RunDirectory(path).metrics()) for path in (one, two)]
    assert metrics[0] == metrics[1]
    assert RunDirectory(one).masks() == RunDirectory(two).masks()
    spectra = [untimed(RunDirectory(path).spectra()) for path in (one, two)]
    assert spectra[0] == spectra[1]
    for name, flags in first["observer"]["masks"].items():
        assert torch.equal(flags, second["observer"]["masks"][name])
    plans = [(path / "plan.json").read_text() for path in (one, two)]
    assert plans[0] == plans[1]
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, two)]
    for summary in summaries:
        del summary["seconds"], summary["spectra_seconds"]
    assert summaries[0] == summaries[1]


@pytest.fixture(scope="module")
def sparse_run(tmp_path_factory):
    """A complete run with mask updates, and what `train` returned."""
    recipe = dataclasses.replace(get_recipe("digits"), base_width=4, epochs=3, update_every=8)
    path = tmp_path_factory.mktemp("runs") / "rigl"
    summary = train(recipe, path, transform=WIDE, method="rigl", quiet=True)
    return recipe, path, summary


def test_run_directory_is_complete(sparse_run):
    recipe, path, summary = sparse_run
    assert files(path) == {
        "config.json", "plan.json", "metrics.jsonl", "masks.jsonl", "summary.json", "tensorboard",
        "checkpoint-000003",
    }  # fmt: skip
    assert json.loads((path / "summary.json").read_text()) == summary
    config = json.loads((path / "config.json").read_text())
    assert config["recipe"]["lr"] == recipe.lr
    assert config["method_config"] == {
        "alpha": 0.3, "update_every": 8, "end_fraction": 0.75, "schedule": "cosine"
    }  # fmt: skip
    assert config["transform"] == "wide"
    assert config["sparsity"] == 0.75
    plan = isoflop.Plan.load(path / "plan.json")
    assert plan.macs == summary["macs"]
    assert plan.unmasked_macs == summary["unmasked_macs"]
    assert plan.dense_macs == summary["dense_macs"]
    assert (plan.nnz, plan.numel) == (summary["nnz"], summary["numel"])
    assert abs(summary["relative_gap"]) <= 1e-3  # at width 4 a weight is a large step
    assert summary["versions"]["torch"] == torch.__version__


def test_metrics(sparse_run):
    _, path, summary = sparse_run
    metrics = RunDirectory(path).metrics()
    assert [line["epoch"] for line in metrics] == [1, 2, 3]
    assert [line["step"] for line in metrics] == [21, 42, 63]
    assert [line["lr"] for line in metrics] == pytest.approx([0.1, 0.075, 0.025])
    assert metrics[-1]["test_accuracy"] == summary["accuracy"]
    assert summary["best_accuracy"] == max(line["test_accuracy"] for line in metrics)
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"] < 3
    assert metrics[-1]["training_flops"] == summary["training_flops"]
    assert {line["density"] for line in metrics} == {summary["density"]}


def test_training_flops_follow_the_definition(sparse_run):
    _, _, summary = sparse_run
    # 63 steps, an update every 8 while step < 0.75 × 63 = 47.25.
    expected = 6 * summary["macs"] * SAMPLES * 3
    expected += 2 * (summary["unmasked_macs"] - summary["macs"]) * 64 * 5
    assert summary["training_flops"] == expected


def test_masks_hold_in_the_saved_weights(sparse_run):
    _, path, _ = sparse_run
    state = load_checkpoint(path)
    assert state is not None
    masks = {k: v for k, v in state["model"].items() if k.endswith("_mask")}
    assert masks
    for name, mask in masks.items():
        weight = state["model"][name.removesuffix("_mask")]
        assert (weight[~mask] == 0).all()
    assert sum(entry["skipped"] is False for entry in state["sparsifier"]["history"]) == 5


def test_norms_and_biases_do_not_decay(sparse_run):
    _, path, _ = sparse_run
    state = load_checkpoint(path)
    assert state is not None
    groups = state["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert all(group["nesterov"] for group in groups)


@pytest.mark.parametrize("stop", [1, 2])
def test_resume_gives_the_same_bits(sparse_run, tmp_path, stop):
    recipe, path, summary = sparse_run
    out = tmp_path / "run"
    options = {"transform": WIDE, "method": "rigl", "quiet": True}
    early = train(recipe, out, **options, stop_after_epochs=stop)
    assert early["epochs"] == stop
    assert "summary.json" not in files(out)
    # What a process may leave behind that is killed between metrics and checkpoint:
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": stop + 1, "train_loss": math.pi}) + '\n{"epoch"')
    (out / ".tmp-half").mkdir()
    again = train(recipe, out, **options, resume=True)
    assert again["accuracy"] == summary["accuracy"]
    assert_same(path, out)
    assert not (out / ".tmp-half").exists()


def test_masks_are_followed_from_the_first_to_the_last(sparse_run):
    _, path, summary = sparse_run
    lines = RunDirectory(path).masks()
    state = load_checkpoint(path)
    assert state is not None
    assert [line["step"] for line in lines] == [0, 8, 16, 24, 32, 40]
    history = state["sparsifier"]["history"]
    for line, entry in zip(lines[1:], history, strict=True):
        assert {name: layer["grown"] for name, layer in line["layers"].items()} == entry["new"]
    final = lines[-1]["layers"]
    for name, masks in unpack(state["observer"]["masks"]).items():
        assert torch.equal(masks["present"], state["model"][f"{name}_mask"])
        assert final[name]["nnz"] == int(masks["present"].sum()) == int(masks["initial"].sum())
        assert final[name]["from_initial"] == int((masks["present"] ^ masks["initial"]).sum())
        assert final[name]["explored"] == int(masks["ever"].sum()) > final[name]["nnz"]
    assert lines[0]["training_flops"] == 0 < lines[-1]["training_flops"] < summary["training_flops"]


@pytest.mark.parametrize("method", ["static", "sr_ste", "dense"])
def test_masks_without_a_history(tiny_recipe, tmp_path, method):
    train(tiny_recipe, tmp_path, transform=WIDE, method=method, quiet=True)
    steps = [line["step"] for line in RunDirectory(tmp_path).masks()]
    assert steps == {"static": [0], "sr_ste": [0, 21, 42], "dense": []}[method]


@pytest.mark.parametrize(
    ("every", "steps"), [("every=1epoch", [0, 21, 42]), ("every=15steps", [0, 15, 30])]
)
def test_spectra_during_training(tiny_recipe, tmp_path, every, steps):
    options = {"transform": WIDE, "method": "rigl", "spectra": every, "quiet": True}
    summary = train(tiny_recipe, tmp_path / "whole", **options)
    lines = RunDirectory(tmp_path / "whole").spectra()
    assert [line["step"] for line in lines] == steps
    assert summary["spectra_seconds"] == pytest.approx(sum(line["seconds"] for line in lines))
    assert all(line["network"]["ramanujan_gap"] is not None for line in lines)
    assert lines[0]["network"] != lines[-1]["network"]  # the masks have moved

    train(tiny_recipe, tmp_path / "parts", **options, stop_after_epochs=1)
    with open(tmp_path / "parts" / "spectra.jsonl", "a") as file:
        file.write(json.dumps({**lines[-1], "step": 37}) + '\n{"step"')
    train(tiny_recipe, tmp_path / "parts", **options, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    plain = train(tiny_recipe, tmp_path / "plain", transform=WIDE, method="rigl", quiet=True)
    assert plain["accuracy"] == summary["accuracy"]  # measuring changes nothing
    assert plain["spectra_seconds"] == 0
    assert RunDirectory(tmp_path / "plain").spectra() == []


DYNAMIC = [name for name in isoflop.list_methods() if METHODS.get(name)().update_due(1000, 4000)]


@pytest.mark.parametrize("method", DYNAMIC)
def test_kill_and_resume_gives_the_same_bits(sparse_run, tmp_path, method):
    recipe, path, _ = sparse_run
    if method != "rigl":
        path = tmp_path / "whole"
        train(recipe, path, transform=WIDE, method=method, quiet=True)
    out = tmp_path / "run"
    code = (
        "import dataclasses\nimport isoflop\nfrom isoflop.lab.recipes import get_recipe\n"
        "from isoflop.lab.training import train\nimport torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "recipe = dataclasses.replace("
        "get_recipe('digits'), base_width=4, epochs=3, update_every=8)\n"
        f"train(recipe, {str(out)!r}, transform=isoflop.SparseWide(sparsity=0.75),"
        f" method={method!r}, quiet=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not list(out.glob("checkpoint-*")) and process.poll() is None:
        time.sleep(0.01)
    # Anywhere in the epochs that follow, saving included.
    time.sleep(random.Random(method).uniform(0.0, 1.0))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    train(recipe, out, transform=WIDE, method=method, quiet=True, resume=True)
    assert_same(path, out)


@pytest.mark.parametrize(("pattern", "density"), [("2:4", 0.5), ("4x1", 0.25), ("2:8-T", 0.25)])
@pytest.mark.filterwarnings("ignore::isoflop.errors.PatternGapWarning")
def test_patterns_by_text(tiny_recipe, tmp_path, pattern, density):
    recipe = tiny_recipe.replace(epochs=1, update_every=4, base_width=8)
    options = {"sparsity": 1 - density, "pattern": pattern, "quiet": True}
    summary = train(recipe, tmp_path, method="rigl", **options)
    assert summary["pattern"] == pattern
    assert summary["density"] == pytest.approx(density, rel=0.2)
    state = load_checkpoint(tmp_path)
    assert state is not None
    masks = [value for name, value in state["model"].items() if name.endswith("_mask")]
    assert masks
    assert all(parse_pattern(pattern).check(mask) for mask in masks)


@pytest.mark.parametrize("method", ["static", "set", "rigl", "gmp", "granet", "snip"])
def test_compressed_storage_ends_like_masked(tiny_recipe, tmp_path, method):
    # Few updates, small steps, and a network that is not too narrow: in a narrower one, outputs
    # without weights have norms of nothing but rounding errors, and masked runs differ from each
    # other in the same way when PyTorch's convolutions are computed by another library.
    recipe = dataclasses.replace(tiny_recipe, epochs=1, update_every=8, base_width=8, lr=0.005)
    if method == "gmp":
        method = isoflop.GMP(update_every=4)
    summaries = [
        train(recipe, tmp_path / s, transform=WIDE, method=method, storage=s, quiet=True)
        for s in ("masked", "compressed")
    ]
    masked, compressed = (
        {name: mask for name, *_, mask in named_masks(restore(tmp_path / s).model)}
        for s in ("masked", "compressed")
    )
    assert masked.keys() == compressed.keys()
    assert all(torch.equal(mask, compressed[key]) for key, mask in masked.items())
    assert [summary.pop("storage") for summary in summaries] == ["masked", "compressed"]
    one, two = summaries
    assert one["accuracy"] == pytest.approx(two["accuracy"], abs=1.5)
    for key in (
        "macs",
        "nnz",
        "numel",
        "training_flops",
        "average_macs",
        "density",
        "relative_gap",
    ):
        assert one[key] == two[key], key
    losses = [
        RunDirectory(tmp_path / s).metrics()[-1]["train_loss"] for s in ("masked", "compressed")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "precision"), [("rigl", "no"), ("granet", "no"), ("rigl", "bf16")]
)
def test_compressed_runs_resume_to_the_same_bits(tiny_recipe, tmp_path, method, precision):
    recipe = tiny_recipe.replace(epochs=3, mixed_precision=precision)
    options = {"transform": WIDE, "method": method, "storage": "compressed", "quiet": True}
    train(recipe, tmp_path / "whole", **options)
    train(recipe, tmp_path / "parts", **options, stop_after_epochs=1)
    train(recipe, tmp_path / "parts", **options, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(RunDirectoryError, match="storage: 'compressed' became 'masked'"):
        train(recipe, tmp_path / "parts", transform=WIDE, method=method, resume=True)


@pytest.mark.skipif(not available(), reason="needs the kernels")
def test_compressed_runs_keep_the_kernels_that_they_began_with(tiny_recipe, tmp_path, monkeypatch):
    path = tmp_path / "run"
    options = {"transform": WIDE, "method": "rigl", "storage": "compressed", "quiet": True}
    train(tiny_recipe, path, **options, stop_after_epochs=1)
    chosen = read_json(RunDirectory(path).kernels_path)
    assert {*chosen.values()} <= {"dense", "sparse"}
    setup = restore(path)
    sparse = [
        n for n, m in setup.model.named_modules() if getattr(m, "weight_mask", None) is not None
    ]
    assert not chosen or sorted(chosen) == sorted(sparse)

    # What is measured at the second start does not matter; what was written at the first one does.
    given = dict.fromkeys(sparse, "dense")
    write_json(RunDirectory(path).kernels_path, given)
    seen = []
    real = kernels.accelerate_

    def accelerate(model, **arguments):
        seen.append((arguments["example_inputs"], arguments["choices"]))
        report = real(model, **arguments)
        assert {m.backend for m in model.modules() if isinstance(m, SparseLayer)} == {"dense"}
        return report

    monkeypatch.setattr(kernels, "accelerate_", accelerate)
    train(tiny_recipe, path, **options, resume=True)
    assert seen == [((tiny_recipe.batch_size, *tiny_recipe.input_shape), given)]


@pytest.mark.skipif(not available(), reason="needs the kernels")
def test_pruned_while_training_all_layers_are_sparse(tiny_recipe, tmp_path):
    method = isoflop.GMP(update_every=4)
    options = {"transform": WIDE, "storage": "compressed", "quiet": True}
    train(tiny_recipe.replace(epochs=1), tmp_path, method=method, **options)
    assert {*read_json(RunDirectory(tmp_path).kernels_path).values()} == {"sparse"}


def test_resume_of_a_complete_run_returns_its_summary(sparse_run):
    recipe, path, summary = sparse_run
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert train(recipe, path, transform=WIDE, method="rigl", resume=True) == summary
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_resume_with_other_options(sparse_run):
    recipe, path, _ = sparse_run
    with pytest.raises(RunDirectoryError, match=r"recipe\.lr"):
        train(recipe.replace(lr=0.2), path, transform=WIDE, method="rigl", resume=True)
    with pytest.raises(RunDirectoryError, match="method"):
        train(recipe, path, transform=WIDE, method="set", resume=True)


def test_second_run_in_the_same_directory(sparse_run):
    recipe, path, _ = sparse_run
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    with pytest.raises(RunDirectoryError, match="--resume"):
        train(recipe, path, transform=WIDE, method="rigl")
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_resume_without_a_run_starts_one(tiny_recipe, tmp_path):
    summary = train(tiny_recipe.replace(epochs=1), tmp_path / "run", resume=True, quiet=True)
    assert summary["epochs"] == 1


def test_dense_training(tiny_recipe, tmp_path):
    summary = train(tiny_recipe, tmp_path, quiet=True)
    assert summary["macs"] == summary["dense_macs"] == summary["unmasked_macs"]
    assert summary["relative_gap"] == 0
    assert summary["nnz"] == summary["numel"]
    assert summary["density"] == 1
    assert summary["training_flops"] == 6 * summary["macs"] * SAMPLES * 2
    assert summary["transform"] is summary["sparsity"] is None


def test_dense_with_a_transform_is_the_upper_bound(tiny_recipe, tmp_path):
    summary = train(tiny_recipe, tmp_path, transform=WIDE, method="dense", quiet=True)
    plan = isoflop.Plan.load(tmp_path / "plan.json")
    assert summary["macs"] == summary["unmasked_macs"] == plan.unmasked_macs
    assert summary["dense_macs"] == plan.dense_macs
    assert summary["nnz"] == summary["numel"] == plan.numel


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_sparse_training_without_a_transform(tiny_recipe, tmp_path, allocation):
    recipe = tiny_recipe.replace(epochs=1)
    summary = train(recipe, tmp_path, method="set", sparsity=0.8, allocation=allocation, quiet=True)
    plan = isoflop.Plan.load(tmp_path / "plan.json")
    assert plan.transform == "none"
    assert (plan.macs, plan.dense_macs) == (summary["macs"], summary["dense_macs"])
    assert summary["macs"] < summary["unmasked_macs"] == summary["dense_macs"]
    assert summary["density"] == pytest.approx(0.2, abs=0.01)
    assert summary["training_flops"] == 6 * summary["macs"] * SAMPLES


# SynFlow prefers the 3×3 path to the 1×1 shortcut beside it, whose last weights are then floored.
@pytest.mark.filterwarnings("ignore::isoflop.errors.LayerCollapseWarning")
@pytest.mark.parametrize("method", isoflop.list_methods())
def test_every_method_trains_at_the_plans_flops(tiny_recipe, tmp_path, method):
    summary = train(
        dataclasses.replace(tiny_recipe, update_every=4),
        tmp_path,
        transform=WIDE,
        method=method,
        quiet=True,
    )
    assert summary["accuracy"] > 10
    plan = isoflop.Plan.load(tmp_path / "plan.json")
    assert method == "dense" or plan.macs == summary["macs"]
    budget = plan.unmasked_macs if method == "dense" else plan.dense_macs
    # The cheapest weight of this small network costs one MAC of 49,568.
    assert abs(summary["average_macs"] - budget) <= 1


def test_allocation_of_a_transform_is_in_the_saved_plan(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace(epochs=1, base_width=8)
    summary = train(recipe, tmp_path, transform=WIDE, method="static", allocation="erk", quiet=True)
    plan = isoflop.Plan.load(tmp_path / "plan.json")
    assert plan.allocation == "erk"
    assert plan.macs == summary["macs"]


@pytest.mark.parametrize("name", ["parallel", "factorized", "doped"])
def test_every_transform_trains(tiny_recipe, tmp_path, name):
    from isoflop.lab.training import build_transform

    recipe = tiny_recipe.replace(epochs=1)
    config = build_transform(name, sparsity=0.5)
    summary = train(recipe, tmp_path, transform=config, method="rigl", quiet=True)
    assert abs(summary["relative_gap"]) < 1e-2
    assert summary["accuracy"] > 10


def test_seeds_differ_and_repeat(tiny_recipe, tmp_path):
    recipe = tiny_recipe.replace(epochs=1)
    losses = []
    for index, seed in enumerate((0, 0, 1)):
        train(recipe, tmp_path / str(index), seed=seed, quiet=True)
        losses.append(RunDirectory(tmp_path / str(index)).metrics()[0]["train_loss"])
    assert losses[0] == losses[1] != losses[2]


def test_method_instance_keeps_its_own_values(tiny_recipe, tmp_path):
    method = isoflop.RigL(update_every=5, alpha=0.1)
    train(tiny_recipe.replace(epochs=1), tmp_path, transform=WIDE, method=method, quiet=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["method_config"]["update_every"] == 5
    assert config["method_config"]["alpha"] == 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "rigl"}, IsoflopError, "needs a sparsity"),
        ({"method": "rigI", "sparsity": 0.5}, UnknownNameError, "rigl"),
        ({"method": "dense", "sparsity": 0.5}, IsoflopError, "no sparsity"),
        ({"method": "rigl", "sparsity": 0.5, "transform": WIDE}, IsoflopError, "belongs to"),
        ({"method": "rigl", "sparsity": 1.0}, IsoflopError, "sparsity"),
        ({"method": "rigl", "sparsity": 0.5, "allocation": "x"}, UnknownNameError, "erk"),
        ({"method": "rigl", "sparsity": 0.5, "pattern": "2;4"}, UnknownNameError, "2:4"),
        ({"method": "rigl", "transform": WIDE, "scope": "x"}, IsoflopError, "scope"),
        ({"method": "rigl", "sparsity": 0.5, "storage": "x"}, UnknownNameError, "compressed"),
        ({"method": "snfs", "sparsity": 0.5, "storage": "compressed"}, IsoflopError, "masked"),
        ({"seed": -1}, IsoflopError, "seed"),
        ({"spectra": "every=1epoch"}, IsoflopError, "no masks"),
        ({"spectra": "1epoch", "method": "rigl", "sparsity": 0.5}, IsoflopError, "every=1epoch"),
        ({"stop_after_epochs": 0}, IsoflopError, "stop_after_epochs"),
    ],
)
def test_bad_options_leave_no_directory(tiny_recipe, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        train(tiny_recipe, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_missing_data_leave_no_directory(tmp_path):
    with pytest.raises(DataError):
        train(get_recipe("fashion-mnist"), tmp_path / "run", data=tmp_path / "absent")
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_the_data(tiny_recipe, tmp_path):
    with pytest.raises(IsoflopError, match="1347"):
        train(tiny_recipe.replace(batch_size=2000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipe_that_does_not_fit_the_data(tiny_recipe, tmp_path):
    with pytest.raises(DataError, match="4"):
        train(tiny_recipe.replace(num_classes=4), tmp_path / "run")


def test_divergence_is_an_error(tiny_recipe, tmp_path):
    with pytest.raises(IsoflopError, match="diverged"):
        train(tiny_recipe.replace(lr=1e30), tmp_path, quiet=True)


def test_progress_goes_to_stderr_only(tiny_recipe, tmp_path, capsys):
    recipe = tiny_recipe.replace(epochs=1)
    train(recipe, tmp_path / "loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 1/1" in err
    train(recipe, tmp_path / "quiet", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_digits_recipe_learns(tmp_path):
    recipe = get_recipe("digits").replace(epochs=8)
    assert train(recipe, tmp_path, quiet=True)["accuracy"] >= 97
