import json
import shutil

import pytest
import torch
from tests.commands import fails

import isoflop
from isoflop.errors import BudgetError, IsoflopError, RunDirectoryError
from isoflop.lab.cli import main
from isoflop.lab.training import restore, train
from isoflop.lab.training.checkpoint import load_checkpoint
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.masks import named_masks

PATHS = {"detection": "backbone.body.", "segmentation": "encoder."}
TASKS = list(PATHS)


def masks_of(path):
    return {name: mask for name, *_, mask in named_masks(restore(path).model)}


def renamed(name, prefix):
    """Return how a weight of the classifier is called in a network."""
    for stage in range(4):
        name = name.replace(f"stages.{stage}.", f"layer{stage + 1}.")
    return prefix + name


@pytest.mark.parametrize("task", TASKS)
def test_masks_stay_and_weights_train(task, recipes, scenes, classifier, tmp_path):
    recipe = recipes[task]
    summary = train(recipe, tmp_path / "run", backbone=classifier, data=scenes, quiet=True)

    before = {renamed(n, PATHS[task]): m for n, m in masks_of(classifier).items()}
    last = renamed("head.weight", PATHS[task])
    after = masks_of(tmp_path / "run")
    assert after.keys() == before.keys() - {last}
    assert all(torch.equal(mask, before[name]) for name, mask in after.items())
    model, source = restore(tmp_path / "run").model, restore(classifier).model
    for name, *_ in named_masks(source):
        if name != "head.weight":
            new = model.get_parameter(renamed(name, PATHS[task]))
            assert (new != source.get_parameter(name)).any()
            assert not new[~after[renamed(name, PATHS[task])]].any()

    costs = summary["backbone"]
    assert costs["relative_gap"] == 0
    assert costs["macs"] == costs["dense_macs"] > 0
    assert costs["added_macs"] > 0
    assert summary["macs"] == summary["dense_macs"] + costs["added_macs"]
    shape = (1, *recipe.input_shape)
    table = isoflop.profile(model, shape)
    assert table.macs == summary["macs"]
    assert table.by_module()[PATHS[task][:-1]] == costs["macs"]
    assert summary["method"] == "static"
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == recipe.epochs
    assert f"test_{summary['metric']}" in lines[0]


@pytest.mark.parametrize("task", TASKS)
def test_resume_is_exact_even_if_the_classifier_is_gone(
    task, recipes, scenes, classifier, tmp_path
):
    lent = tmp_path / "lent"
    shutil.copytree(classifier, lent)
    options = {"data": scenes, "workers": 0, "quiet": True}
    train(recipes[task], tmp_path / "whole", backbone=classifier, **options)
    parts = tmp_path / "parts"
    train(recipes[task], parts, backbone=lent, stop_after_epochs=1, **options)
    shutil.rmtree(lent)
    with pytest.raises(IsoflopError, match="had other options"):
        train(recipes[task].replace(lr=0.5), parts, resume=True, **options)
    train(recipes[task], parts, resume=True, **options)
    whole, resumed = load_checkpoint(tmp_path / "whole"), load_checkpoint(parts)
    assert whole is not None
    assert resumed is not None
    for key, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][key])
    ours, theirs = (RunDirectory(tmp_path / name).summary() for name in ("whole", "parts"))
    assert ours is not None
    assert theirs is not None
    changing = ("seconds", "backbone")
    assert {k: v for k, v in ours.items() if k not in changing} == {
        k: v for k, v in theirs.items() if k not in changing
    }
    assert ours["backbone"] == {**theirs["backbone"], "run": str(classifier)}


def test_another_classifier_is_noticed_on_resume(
    recipes, scenes, classifier, classifier_recipe, tmp_path
):
    options = {"data": scenes, "workers": 0, "quiet": True}
    train(
        recipes["segmentation"],
        tmp_path / "run",
        backbone=classifier,
        stop_after_epochs=1,
        **options,
    )
    wide = isoflop.SparseWide(sparsity=0.75, dense_ends=False)
    other = tmp_path / "other"
    train(
        classifier_recipe, other, transform=wide, method="rigl", scope="layers", seed=1, quiet=True
    )
    with pytest.raises(RunDirectoryError, match=r"backbone_run\.digest"):
        train(recipes["segmentation"], tmp_path / "run", backbone=other, resume=True, **options)


def test_interrupted_before_the_first_checkpoint(recipes, scenes, classifier, tmp_path):
    run = tmp_path / "run"
    options = {"data": scenes, "workers": 0, "quiet": True}
    train(recipes["segmentation"], run, backbone=classifier, stop_after_epochs=1, **options)
    shutil.rmtree(next(run.glob("checkpoint-*")))
    with pytest.raises(RunDirectoryError, match="begin with its backbone again"):
        train(recipes["segmentation"], run, resume=True, **options)
    train(recipes["segmentation"], run, backbone=classifier, resume=True, **options)


def test_compressed_storage_trains_the_same(recipes, scenes, classifier, tmp_path):
    for storage in ("masked", "compressed"):
        train(
            recipes["segmentation"],
            tmp_path / storage,
            backbone=classifier,
            data=scenes,
            storage=storage,
            workers=0,
            quiet=True,
        )
    masked, compressed = (restore(tmp_path / name).model for name in ("masked", "compressed"))
    assert masks_of(tmp_path / "masked").keys() == masks_of(tmp_path / "compressed").keys()
    for name, value in masked.named_parameters():
        torch.testing.assert_close(compressed.get_parameter(name), value, rtol=1e-3, atol=1e-4)


def test_dense_classifier_and_sparse_learning_rate(
    recipes, scenes, classifier, classifier_recipe, tmp_path
):
    recipe = recipes["segmentation"].replace(sparse_lr=0.03)
    dense = tmp_path / "dense"
    train(classifier_recipe, dense, quiet=True)
    for name, backbone, rate in (("a", dense, recipe.lr), ("b", classifier, 0.03)):
        summary = train(
            recipe,
            tmp_path / name,
            backbone=backbone,
            data=scenes,
            stop_after_epochs=1,
            workers=0,
            quiet=True,
        )
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["recipe"]["lr"] == rate
        assert summary["method"] == ("dense" if backbone == dense else "static")
    costs = json.loads((tmp_path / "a" / "config.json").read_text())["backbone"]
    assert costs["method"] == "dense"


@pytest.mark.parametrize("task", TASKS)
def test_spectra_and_export(task, recipes, scenes, classifier, tmp_path, capsys):
    run = tmp_path / "run"
    train(
        recipes[task],
        run,
        backbone=classifier,
        data=scenes,
        stop_after_epochs=1,
        workers=0,
        quiet=True,
    )
    main(["spectra", str(run), "--json"])
    spectra = json.loads(capsys.readouterr().out)
    assert spectra["layers"].keys() == masks_of(run).keys()
    main(["export", str(run), "--out", str(tmp_path / "model.safetensors")])
    loaded, plan = isoflop.load(tmp_path / "model.safetensors")
    assert plan is None
    x = torch.randn(2, *recipes[task].input_shape)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(x), restore(run).model.eval()(x))


def refused(match, error, recipe, tmp_path, **options):
    with pytest.raises(error, match=match):
        train(recipe, tmp_path / "out", workers=0, quiet=True, **options)
    assert not (tmp_path / "out").exists()


def test_gap_in_flops(recipes, scenes, classifier_recipe, tmp_path):
    cls = tmp_path / "cls"
    train(
        classifier_recipe,
        cls,
        transform=isoflop.SparseWide(sparsity=0.75),
        method="static",
        quiet=True,
    )
    recipe = recipes["segmentation"]
    refused("accept the gap", BudgetError, recipe, tmp_path, backbone=cls, data=scenes)
    with pytest.raises(BudgetError) as error:
        train(recipe, tmp_path / "out", backbone=cls, data=scenes, quiet=True)
    offered = float(str(error.value).rpartition("--backbone-gap ")[2].rstrip(".)"))
    summary = train(
        recipe,
        tmp_path / "out",
        backbone=cls,
        backbone_gap=offered,
        data=scenes,
        stop_after_epochs=1,
        workers=0,
        quiet=True,
    )
    assert 1e-6 < abs(summary["backbone"]["relative_gap"]) <= offered


def test_options_that_contradict_a_backbone(recipes, scenes, classifier, tmp_path, tiny_recipe):
    common = {"backbone": classifier, "data": scenes}
    wide = isoflop.SparseWide(sparsity=0.5)
    recipe = recipes["detection"]
    refused("leave out --transform", IsoflopError, recipe, tmp_path, transform=wide, **common)
    refused("leave out --transform", IsoflopError, recipe, tmp_path, sparsity=0.5, **common)
    refused("Leave out --method", IsoflopError, recipe, tmp_path, method="rigl", **common)
    refused("takes no backbone", IsoflopError, tiny_recipe, tmp_path, backbone=classifier)
    other = recipe.replace(model="isoflop:resnet18")
    refused(
        "Models that do: isoflop:deeplabv3plus_resnet18,", IsoflopError, other, tmp_path, **common
    )


def test_backbones_of_another_architecture(recipes, scenes, classifier_recipe, tmp_path):
    changes = {
        "isoflop:resnet34_cifar of width 4": {"model": "isoflop:resnet34_cifar"},
        "isoflop:resnet18_cifar of width 8": {"base_width": 8},
    }
    for number, (name, change) in enumerate(changes.items()):
        cls = tmp_path / f"cls{number}"
        train(classifier_recipe.replace(**change), cls, quiet=True)
        refused(f"is {name}, which", IsoflopError, recipes["detection"], tmp_path, backbone=cls,
                data=scenes)  # fmt: skip
    cls = tmp_path / "digits"
    train(classifier_recipe.replace(model="isoflop:resnet8_digits"), cls, quiet=True)
    refused("no ResNet of four", IsoflopError, recipes["detection"], tmp_path, backbone=cls,
            data=scenes)  # fmt: skip


def test_damaged_backbones(recipes, scenes, classifier, tmp_path):
    recipe = recipes["segmentation"]
    options = {"data": scenes}
    refused("no run directory", RunDirectoryError, recipe, tmp_path, backbone=tmp_path, **options)
    broken = tmp_path / "broken"
    shutil.copytree(classifier, broken)
    state = next(broken.glob("checkpoint-*")) / "state.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    refused("is damaged", RunDirectoryError, recipe, tmp_path, backbone=broken, **options)
    state.write_bytes(whole)
    config = json.loads((broken / "config.json").read_text())
    config["recipe"]["num_classes"] = 7
    (broken / "config.json").write_text(json.dumps(config))
    refused("does not fit", RunDirectoryError, recipe, tmp_path, backbone=broken, **options)


def test_a_detector_is_no_backbone(recipes, scenes, classifier, tmp_path):
    train(
        recipes["segmentation"],
        tmp_path / "run",
        backbone=classifier,
        data=scenes,
        stop_after_epochs=1,
        workers=0,
        quiet=True,
    )
    refused(
        "not a classifier",
        IsoflopError,
        recipes["detection"],
        tmp_path,
        backbone=tmp_path / "run",
        data=scenes,
    )


def test_command_line(scenes, tmp_path, capsys):
    cls = [
        "train", "digits", "--model", "isoflop:resnet18_cifar", "--base-width", "8",
        "--transform", "wide", "--sparsity", "0.5", "--method", "static", "--epochs", "1",
    ]  # fmt: skip
    transfer = [
        "train", "fashion-scenes-detection", "--data", str(scenes), "--workers", "0",
        "--batch-size", "8", "--epochs", "1",
    ]  # fmt: skip
    main([*cls, "--scope", "layers", "--sparse-ends", "--out", str(tmp_path / "exact")])
    main([*cls, "--out", str(tmp_path / "cls")])
    capsys.readouterr()
    out = ["--out", str(tmp_path / "run")]
    message = fails(capsys, *transfer, "--backbone", str(tmp_path / "cls"), *out)
    assert "--scope layers --sparse-ends" in message
    assert not (tmp_path / "run").exists()
    main([*transfer, "--backbone", str(tmp_path / "exact"), *out])
    printed = capsys.readouterr().out
    assert printed.startswith("ap ")
    assert "(gap +0.00e+00); its wider maps add" in printed
    main(["evaluate", str(tmp_path / "run"), "--data", str(scenes), "--json"])
    measured = json.loads(capsys.readouterr().out)["test"]
    summary = RunDirectory(tmp_path / "run").summary()
    assert summary is not None
    assert {name: summary[name] for name in measured} == measured
    assert "--sparse-ends needs" in fails(
        capsys, "train", "digits", "--sparse-ends", "--out", str(tmp_path / "x")
    )
