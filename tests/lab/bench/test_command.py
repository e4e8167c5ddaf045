import json

import pytest
from tests.commands import fails

from isoflop.lab.cli import main

LAYER = ["bench", "matmul", "--inputs", "8", "--outputs", "12", "--batch", "4", "--threads", "1"]
QUICK = ["--peers", "none", "--skip", "dense_compiled", "--repeats", "2"]


def test_one_sparsity_is_one_object(capsys, tmp_path):
    out, plot = tmp_path / "a.json", tmp_path / "a.png"
    args = [*LAYER, *QUICK, "--sparsity", "0.75", "--out", str(out), "--plot", str(plot), "--json"]
    main(args)
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text())
    assert result["workload"]["nnz"] == 96
    assert result["workload"]["threads"] == 1
    assert {"workload", "machine", "seconds", "ratio_to_dense", "median", "spread"} <= result.keys()
    assert {"dense", "masked", "isoflop"} <= result["seconds"].keys()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_several_sparsities_are_a_list_and_tables(capsys):
    args = ["bench", "training", "--model", "isoflop:resnet8_digits", "--batch", "2", *QUICK]
    main([*args, "--sparsity", "0.5", "0.75", "--json"])
    results = json.loads(capsys.readouterr().out)
    assert [result["workload"]["sparsity"] for result in results] == [0.5, 0.75]
    main([*args, "--sparsity", "0.5", "--skip", "dense_compiled", "dense_channels_last"])
    out = capsys.readouterr().out
    assert "training at 50 % sparsity" in out
    assert "dense at its best" in out
    assert "dense_channels_last" not in out


def test_bfloat16_takes_part_where_it_is_asked_for(capsys):
    args = [*LAYER, *QUICK, "--sparsity", "0.75", "--json"]
    main(args)
    plain = json.loads(capsys.readouterr().out)
    assert not [name for name in plain["seconds"] if "bf16" in name]
    main([*args, "--bf16", "--skip", "dense_compiled", "dense_bf16_compiled"])
    result = json.loads(capsys.readouterr().out)
    assert "dense_bf16" in result["ratio_to_dense"]
    assert "isoflop_bf16" in {*result["seconds"], *result["skipped"]}
    assert "bf16" not in result["dense_is"]


def test_missing_peers_are_told(capsys, tmp_path):
    quick = ["--skip", "dense_compiled", "masked", "--repeats", "1", "--sparsity", "0.5"]
    folder = ["--peers-folder", str(tmp_path)]
    main([*LAYER, *quick, *folder, "--peers", "deepsparse", "sparselab"])
    out = capsys.readouterr().out
    assert "not here: deepsparse (not installed in" in out
    assert "not here: sparselab (not installed in" in out
    assert "onnxruntime" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sparsity", "1.0"], "--sparsity must lie in [0, 1)"),
        (["--sparsity", "-0.1"], "--sparsity must lie in [0, 1)"),
        (["--repeats", "0"], "--repeats"),
        (["--threads", "0"], "--threads"),
        (["--peers", "deepspars"], "Unknown peer 'deepspars'"),
        (["--skip", "maskd"], "Did you mean 'masked'"),
        (["--out", "nowhere/a.json"], "no folder"),
        (["--plot", "nowhere/a.png"], "no folder"),
        (["--plot", "a.gif"], "the suffix must be one of .png, .pdf, .svg"),
    ],
)
def test_mistakes_are_one_line(capsys, args, message):
    assert message in fails(capsys, *LAYER, *args)


def test_unknown_models(capsys):
    with pytest.raises(SystemExit) as error:
        main(["bench", "inference", "--model", "isoflop:resnet", "--json"])
    assert error.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Unknown isoflop model" in err.splitlines()[-1]  # after the progress
