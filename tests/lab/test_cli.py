import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.commands import fails
from tests.lab.conftest import write_python

import isoflop
from isoflop.lab.cli import main
from isoflop.lab.training.configs import method_options

ROOT = Path(__file__).parents[2]


def run_json(capsys, *args):
    main([*args, "--json"])
    return json.loads(capsys.readouterr().out)


def test_list(capsys):
    tables = run_json(capsys, "list")
    assert list(tables) == [
        "transforms", "methods", "patterns", "allocations", "schedules", "recipes", "models", "tables"
    ]  # fmt: skip
    assert {"wide", "parallel", "factorized", "doped", "low_rank"} <= tables["transforms"].keys()
    assert {"static", "dense", "set", "rigl"} <= tables["methods"].keys()
    assert {"digits", "fashion-mnist", "cifar10", "cifar100"} <= tables["recipes"].keys()
    for table in tables.values():
        assert all(table.values()), table  # every entry says what it is
    main(["list"])
    out = capsys.readouterr().out
    for table in tables.values():
        for name, text in table.items():
            assert name in out
            assert text in out


def test_profile(capsys):
    table = run_json(capsys, "profile", "isoflop:resnet18_cifar")
    assert table["macs"] == 555_468_800
    main(["profile", "isoflop:resnet18_cifar", "--num-classes", "10"])
    assert "555,422,720" in capsys.readouterr().out


def test_names_in_any_case(capsys):
    args = ["ISOFLOP:ResNet8_Digits", "--transform", "Wide", "--sparsity", "0.75", "--scope"]
    plan = run_json(capsys, "Profile", *args, "Layers")
    assert (plan["transform"], plan["scope"]) == ("wide", "layers")


def test_profile_with_another_input(capsys):
    table = run_json(capsys, "profile", "torchvision:resnet18", "--input", "1,3,224,224")
    assert table["macs"] == 1_814_073_344


def test_profile_of_a_transform_is_its_plan(capsys):
    args = ["profile", "isoflop:resnet18_cifar", "--transform", "wide", "--sparsity", "0.75"]
    plan = run_json(capsys, *args)
    assert plan["transform"] == "wide"
    assert plan["dense_macs"] == 555_468_800
    assert abs(plan["totals"]["relative_gap"]) <= 1e-6
    main(args)
    assert "wide(" in capsys.readouterr().out


def test_profile_of_a_users_model(capsys, user_module):
    table = run_json(
        capsys, "profile", f"{user_module}:mlp", "--input", "1,12", "--num-classes", "4"
    )
    assert table["macs"] == 12 * 8 + 8 * 8 + 8 * 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["profile", "resnet18"], "timm:NAME"),
        (["profile", "isoflop:resnet18_cifr"], "Did you mean 'resnet18_cifar'"),
        (["profile", "isoflop:resnet8_digits", "--sparsity", "0.5"], "--transform"),
        (["profile", "isoflop:resnet8_digits", "--transform", "wide"], "--sparsity"),
        (["profile", "isoflop:resnet8_digits", "--transform", "w", "--json"], "wide"),
        (["profile", "isoflop:resnet8_digits", "--input", "8x8"], "1,3,224,224"),
        (["profile", "isoflop:resnet8_digits", "--input", "1,5,8,8"], "example inputs"),
        (
            ["profile", "isoflop:resnet8_digits", "--transform", "wide", "--sparsity", "0.5",
             "--width", "2"],
            "takes no width",
        ),
        (["profile", "isoflop:resnet8_digits", "--input", "1,1,9999999999999999999,8"], "no shape"),
        (["profile", "isoflop:resnet8_digits", "--num-classes", "-1"], "must not be negative"),
        (["profile", "os.path:join"], "missing a required argument: 'a'"),
        (["profile", "isoflop:resnet8_digits", "--scope", "layer"], "Did you mean 'layers'"),
        (["profile", "isoflop:resnet8_digits", "--scope=layer"], "Known: model, layers"),
        (["spectra", "nowhere", "--bound", "mu1"], "Did you mean 'mu0'"),
        (["export", "--format", "onx", "nowhere", "--out", "x"], "Did you mean 'onnx'"),
        (["reproduce", "table2", "--preset", "cpus"], "Did you mean 'cpu'"),
        (["reproduce", "tabel2"], "Did you mean 'table2'"),
        (["export", "run", "model", "--format", "onx"], "Did you mean 'onnx'"),
        (["train", "digits", "--out", "x", "--storage", "compresed"], "Did you mean 'compressed'"),
        (["train", "digits", "--out", "a\0b"], "is no path"),
        (["trian", "digits"], "Did you mean 'train'"),
        (["bench", "inferense"], "Did you mean 'inference'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(capsys, args, message):
    assert message in fails(capsys, *args)


def test_train_and_resume(capsys, tmp_path):
    args = [
        "train", "digits", "--transform", "wide", "--sparsity", "0.75", "--method", "rigl",
        "--epochs", "1", "--base-width", "4", "--batch-size", "128", "--lr", "0.05",
        "--update-every", "3", "--alpha", "0.2", "--end-fraction", "0.5", "--seed", "3",
        "--allocation", "uniform", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    summary = run_json(capsys, *args)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"]["lr"] == 0.05
    assert config["recipe"]["batch_size"] == 128
    assert config["method_config"]["update_every"] == 3
    assert config["method_config"]["alpha"] == 0.2
    assert config["method_config"]["end_fraction"] == 0.5
    assert summary["seed"] == 3
    assert "--resume" in fails(capsys, *args, "--json")
    assert run_json(capsys, *args, "--resume") == summary
    main([*args, "--resume"])
    assert "accuracy" in capsys.readouterr().out


def test_train_compressed(capsys, tmp_path):
    args = [
        "train", "digits", "--transform", "wide", "--sparsity", "0.75", "--epochs", "1",
        "--base-width", "8", "--update-every", "4", "--pattern", "4x1", "--storage", "compressed",
        "--mixed-precision", "bf16",
    ]  # fmt: skip
    with pytest.warns(isoflop.PatternGapWarning):
        summary = run_json(capsys, *args, "--out", str(tmp_path / "run"))
    assert (summary["storage"], summary["method"]) == ("compressed", "rigl")
    assert summary["mixed_precision"] == "bf16"
    assert summary["nnz"] < summary["numel"]
    without = [arg for arg in args if arg not in ("--update-every", "4")]
    message = fails(capsys, *without, "--method", "sr_ste", "--out", str(tmp_path / "other"))
    assert "storage='masked'" in message
    assert not (tmp_path / "other").exists()


def test_train_and_evaluate_a_language_model(capsys, tmp_path):
    write_python(tmp_path / "python")
    run = str(tmp_path / "run")
    summary = run_json(
        capsys, "train", "pysource", "--out", run, "--data", str(tmp_path / "python"),
        "--base-width", "32", "--tokens", "2048", "--epochs", "1", "--batch-size", "4",
        "--accumulate", "2", "--transform", "parallel", "--sparsity", "0.5", "--method", "set",
    )  # fmt: skip
    assert (summary["steps"], summary["metric"], summary["recipe"]) == (2, "perplexity", "pysource")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["scope"] == "layers"
    found = run_json(capsys, "evaluate", run)
    assert found["test"]["perplexity"] == summary["perplexity"]
    main(["evaluate", run])
    assert f"test perplexity {summary['perplexity']:.4f}" in capsys.readouterr().out
    assert "name them with --tasks" in fails(capsys, "evaluate", run, "--include-path", run)
    assert "no run" in fails(capsys, "evaluate", str(tmp_path / "absent"))
    exported = str(tmp_path / "model.pt2")
    main(["export", run, "--format", "pt2", "--out", exported])
    tokens = torch.zeros(3, 256, dtype=torch.long)
    assert torch.export.load(exported).module()(tokens).shape == (3, 256, 257)


@pytest.mark.parametrize("name", isoflop.list_methods())
def test_every_method_is_listed_and_trains(capsys, tmp_path, name):
    assert name in run_json(capsys, "list")["methods"]
    args = ["train", "digits", "--transform", "wide", "--sparsity", "0.5", "--method", name]
    args += ["--epochs", "1", "--base-width", "4"]
    if "update_every" in method_options(name):
        args += ["--update-every", "4"]
    options = ["--option", "rounds=5"] if name in ("synflow", "force", "iterative_snip") else []
    summary = run_json(capsys, *args, *options, "--out", str(tmp_path / "run"))
    assert summary["method"] == name
    if name != "dense":
        # The cheapest weight of this small network costs 4 MACs of 49,568.
        assert abs(summary["average_macs"] - summary["dense_macs"]) <= 2


def test_options_of_methods(capsys, tmp_path):
    args = ["train", "digits", "--sparsity", "0.5", "--method", "granet", "--epochs", "1"]
    args += ["--base-width", "4", "--update-every", "3", "--alpha", "0.3"]
    options = ["--option", "pruning_end=0.4", "per_layer=True", "schedule=linear"]
    run_json(capsys, *args, *options, "--out", str(tmp_path / "run"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())["method_config"]
    assert (config["pruning_end"], config["per_layer"], config["schedule"]) == (0.4, True, "linear")
    assert (config["alpha"], config["update_every"], config["end_fraction"]) == (0.3, 3, 1.0)
    out = ["--out", str(tmp_path / "other")]
    assert "takes no ramp; it takes alpha" in fails(capsys, *args, "--option", "ramp=1", *out)
    assert "name=value" in fails(capsys, *args, "--option", "pruning_end", *out)
    assert "pruning_end must lie in" in fails(capsys, *args, "--option", "pruning_end=x", *out)
    assert not (tmp_path / "other").exists()


def test_default_method_follows_the_options(capsys, tmp_path):
    common = ["train", "digits", "--epochs", "1", "--base-width", "4"]
    dense = run_json(capsys, *common, "--out", str(tmp_path / "dense"))
    assert dense["method"] == "dense"
    plain = run_json(capsys, *common, "--sparsity", "0.5", "--out", str(tmp_path / "plain"))
    assert (plain["method"], plain["transform"], plain["sparsity"]) == ("rigl", None, 0.5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["digit"], "Did you mean 'digits'"),
        (["digits", "--method", "rigl"], "--sparsity"),
        (["digits", "--epochs", "0"], "epochs"),
        (["digits", "--width", "2"], "low_rank"),
        (["fashion-mnist", "--data", "nowhere"], "dataset-fashion-mnist"),
        (["cifar100"], "--data"),
    ],
)
def test_train_mistakes_leave_nothing_behind(capsys, tmp_path, args, message):
    assert message in fails(capsys, "train", *args, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_export(capsys, tmp_path):
    run, file, other = tmp_path / "run", tmp_path / "m.safetensors", tmp_path / "m.pt2"
    args = ["train", "digits", "--transform", "wide", "--sparsity", "0.5", "--epochs", "1"]
    run_json(capsys, *args, "--base-width", "4", "--out", str(run))
    told = run_json(capsys, "export", str(run), "--out", str(file))
    assert told == {"out": str(file), "format": "safetensors", "bytes": file.stat().st_size}
    model, plan = isoflop.load(file)
    assert plan is not None
    main(["export", str(file), "--format", "pt2", "--out", str(other)])
    assert "pt2" in capsys.readouterr().out
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        ours = torch.export.load(other).module()(x)
        torch.testing.assert_close(ours, model.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing"], "no file nothing"),
        (["."], "config.json cannot be read"),
        (["pyproject.toml"], "no safetensors file"),
    ],
)
def test_export_mistakes(capsys, tmp_path, args, message):
    assert message in fails(capsys, "export", *args, "--out", str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_spectra_of_a_run_and_of_a_checkpoint(capsys, tmp_path):
    args = ["train", "digits", "--transform", "wide", "--sparsity", "0.5", "--epochs", "1"]
    args += ["--base-width", "4", "--spectra", "every=1epoch", "--out", str(tmp_path / "run")]
    summary = run_json(capsys, *args)
    assert summary["spectra_seconds"] > 0
    last = (tmp_path / "run" / "spectra.jsonl").read_text().splitlines()[-1]
    found = run_json(capsys, "spectra", str(tmp_path / "run"))
    assert (found["epoch"], found["step"]) == (1, 21)
    assert found["layers"] == json.loads(last)["layers"]
    assert found["network"] == json.loads(last)["network"]
    checkpoint = str(tmp_path / "run" / "checkpoint-000001")
    other = run_json(capsys, "spectra", checkpoint, "--bound", "mu0")
    assert other["network"]["ramanujan_gap"] != found["network"]["ramanujan_gap"]
    main(["spectra", str(tmp_path / "run")])
    assert "network (mean of the layers)" in capsys.readouterr().out


def test_spectra_mistakes(capsys, tmp_path):
    assert "no run directory" in fails(capsys, "spectra", str(tmp_path))
    main(["train", "digits", "--epochs", "1", "--base-width", "4", "--out", str(tmp_path / "run")])
    capsys.readouterr()
    assert "has no masks" in fails(capsys, "spectra", str(tmp_path / "run"))
    assert "no masks" in fails(
        capsys, "train", "digits", "--spectra", "every=1epoch", "--out", str(tmp_path / "new")
    )
    assert not (tmp_path / "new").exists()


def test_as_a_program():
    program = [sys.executable, "-m", "isoflop.lab.cli"]
    environment = {**os.environ, "COLUMNS": "100"}
    run = subprocess.run([*program, "--help"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0
    for command in ("bench", "export", "list", "profile", "report", "spectra", "train"):
        assert command in run.stdout
    run = subprocess.run(
        [*program, "profile", "timm:nothing-like-it"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_help_imports_nothing_heavy():
    code = (
        "import sys, isoflop.lab.cli\n"
        "try: isoflop.lab.cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'accelerate', 'torchvision', 'timm', 'matplotlib', 'sklearn', 'tensorboard'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom isoflop.lab.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'scipy'} & sys.modules.keys()\n"
    )
    for args in (["--help"], ["train", "--help"], ["report", "--help"], ["--version"]):
        run = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert "isoflop" in run.stdout


OWN = '''
from dataclasses import dataclass
from typing import ClassVar

import isoflop
from isoflop.methods import METHODS, DropGrow
from isoflop.methods.growth import RANDOM


@METHODS.register("own_rewiring")
@dataclass(frozen=True, kw_only=True)
class OwnRewiring(DropGrow):
    """A method of somebody's own."""

    grow_by: ClassVar = RANDOM
'''


@pytest.mark.parametrize("before", [True, False])
def test_imports_what_is_own(tmp_path, before):
    (tmp_path / "own_methods.py").write_text(OWN)
    own = ["--import", "own_methods"] if before else ["--import=own_methods"]
    args = [*own, "list"] if before else ["list", *own]
    run = subprocess.run(
        [sys.executable, "-m", "isoflop.lab.cli", *args],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "own_rewiring" in run.stdout
    assert "A method of somebody's own." in run.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--import", "no_such_module", "list"], "No module named 'no_such_module'"),
        (["--import"], "needs the name of a module"),
        (["list", "--import", "--json"], "needs the name of a module"),
    ],
)
def test_what_cannot_be_imported_is_one_line(capsys, args, message):
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
