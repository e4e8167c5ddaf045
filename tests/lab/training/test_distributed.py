"""Training on several processes ends as on one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.lab.training.distributed_worker import METHODS, SHARDED, UNEVEN, run

from isoflop.errors import IsoflopError
from isoflop.lab.data import ImageData, load_dataset
from isoflop.lab.recipes import get_recipe
from isoflop.lab.training import RunDirectory, load_run, restore
from isoflop.lab.training.checkpoint import load_checkpoint
from isoflop.lab.training.distributed import check_batches, seed_epoch
from isoflop.masks import named_masks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without distributed")

ROOT = Path(__file__).parents[3]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
EXACT = (
    "macs", "dense_macs", "average_macs", "training_flops", "nnz", "numel", "density", "epochs", "steps",
)  # fmt: skip


def launch(*command):
    """Run a command to its end and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[:4000]
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder of the runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in METHODS:
        run(name, folder / name)
    run("rigl", folder / "begun", stop_after_epochs=1)
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory, alone):
    """Folder of the runs of several processes."""
    folder = tmp_path_factory.mktemp(f"together{request.param}")
    shutil.copytree(alone / "begun", folder / "taken")
    size = str(request.param)
    launch(*TORCHRUN, size, "-m", "tests.lab.training.distributed_worker", str(folder), size)
    return folder


def results(path):
    """Return the summary, the measurements and the state of a run."""
    directory = RunDirectory(path)
    state = load_checkpoint(path)
    assert state is not None
    return directory.summary(), directory.metrics(), directory.masks(), state


def assert_equal_up_to_rounding(path, other):
    summary, metrics, masks, state = results(path)
    summary2, metrics2, masks2, state2 = results(other)
    assert summary is not None
    assert summary2 is not None
    assert {key: summary[key] for key in EXACT} == {key: summary2[key] for key in EXACT}
    assert summary["accuracy"] == summary2["accuracy"]
    assert masks == masks2
    for line, line2 in zip(metrics, metrics2, strict=True):
        assert line["train_loss"] == pytest.approx(line2["train_loss"], rel=1e-6)
        assert line["test_accuracy"] == line2["test_accuracy"]
    assert state["sparsifier"]["history"] == state2["sparsifier"]["history"]
    for name, value in state["model"].items():
        torch.testing.assert_close(state2["model"][name], value)
        if value.dtype == torch.bool:
            assert torch.equal(state2["model"][name], value)
    for index, values in state["optimizer"]["state"].items():
        torch.testing.assert_close(state2["optimizer"]["state"][index], values)


def test_as_many_as_there_are(alone, together):
    compared = [path.name for path in together.iterdir() if path.name.partition("-")[0] in METHODS]
    assert len(compared) in (2, len(METHODS) + len(SHARDED))
    for name in compared:
        assert_equal_up_to_rounding(alone / name.partition("-")[0], together / name)
        summary = RunDirectory(together / name).summary()
        assert summary is not None
        assert summary["processes"] > 1
        assert summary["sharded"] == name.endswith("-sharded")


@pytest.mark.parametrize("kind", ["", "-sharded"])
def test_resume_on_as_many_processes(together, kind):
    assert_equal_up_to_rounding(together / f"rigl{kind}", together / f"again{kind}")
    summary, _, _, state = results(together / f"rigl{kind}")
    assert summary is not None
    if summary["processes"] > 2 and not kind:
        return  # DDP groups gradients anew after its first step, and sums them in another order
    again = results(together / f"again{kind}")[3]
    for name, value in state["model"].items():
        assert torch.equal(again["model"][name], value)
    for index, values in state["optimizer"]["state"].items():
        other = again["optimizer"]["state"][index]["momentum_buffer"]
        assert torch.equal(other, values["momentum_buffer"])


def test_resume_on_another_number_of_processes(alone, together):
    assert_equal_up_to_rounding(alone / "rigl", together / "taken")
    run("rigl", together / "begun", resume=True)
    assert_equal_up_to_rounding(alone / "rigl", together / "begun")


def test_checkpoint_of_a_sharded_model_is_whole(alone, together):
    restored, expected = restore(together / "rigl-sharded").model, restore(alone / "rigl").model
    assert len(list(named_masks(restored))) == len(list(named_masks(expected)))
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(restored(x), expected(x))
    loaded, _, _ = load_run(together / "rigl-sharded")
    torch.testing.assert_close(loaded(x), expected(x))


def test_norms_have_the_mean_statistics_of_all(together):
    """Each process normalises by its own samples, but all evaluate, and save, one model."""
    states = [results(together / f"norms-{shard}")[3]["model"] for shard in (False, True)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)
    path = together / "norms-False"
    model = restore(path).model.eval()
    data = load_dataset("digits")
    assert isinstance(data, ImageData)
    with torch.no_grad():
        found = model(data.normalize(data.test_images)).argmax(1)
    summary = RunDirectory(path).summary()
    assert summary is not None
    right = int((found == data.test_labels).sum())
    assert summary["accuracy"] == 100 * right / len(found)


def test_sharded_models_in_half_precision(together):
    path = together / "half"
    if not path.exists():
        pytest.skip("trained by two processes only")
    summary, metrics, _, state = results(path)
    assert summary is not None
    assert (summary["mixed_precision"], summary["sharded"]) == ("bf16", True)
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    # Computed in 16 bits, but kept in 32.
    for name, value in state["model"].items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert not torch.equal(value, value.bfloat16().float()) or not value.any(), name


def test_processes_that_differ_are_found(together):
    errors = sorted(together.glob("error-*"))
    summary = RunDirectory(together / "rigl").summary()
    assert summary is not None
    assert len(errors) == summary["processes"]
    for error in errors:
        assert "the random number generator" in error.read_text()


def test_command_line(tmp_path):
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
    settings = "--mixed_precision no --dynamo_backend no -m isoflop.lab.cli"
    options = "train digits --sparsity 0.5 --base-width 4 --epochs 1 --shard --json --out"
    words = f"{launcher} {settings} {options}".split()
    summary = json.loads(launch(sys.executable, *words, str(tmp_path / "run")))
    assert (summary["processes"], summary["sharded"]) == (2, True)
    assert summary == RunDirectory(tmp_path / "run").summary()


def test_batches_too_small_for_all_processes():
    recipe = get_recipe("digits").replace(batch_size=64, drop_last=False)
    check_batches(recipe, 129, 1)
    with pytest.raises(IsoflopError, match="make a batch of 1, too few for 2 processes"):
        check_batches(recipe, 129, 2)
    check_batches(recipe.replace(drop_last=True), 129, 2)
    with pytest.raises(IsoflopError, match="that of all 128 processes"):
        check_batches(recipe, None, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one process only"),
        ({"storage": "compressed"}, "masked storage"),
        ({"spectra": "every=1epoch"}, "isoflop spectra RUN"),
    ],
)
def test_what_cannot_be_sharded(tmp_path, options, message):
    with pytest.raises(IsoflopError, match=message):
        run("rigl", tmp_path / "run", shard=True, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_share_the_test_set(size):
    data = load_dataset("digits")
    assert isinstance(data, ImageData)
    parts = [list(data.test_batches(200, rank=rank, world_size=size)) for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    labels = torch.cat([labels for part in parts for _, labels in part])
    assert torch.equal(labels.sort().values, data.test_labels.sort().values)


def test_processes_draw_numbers_of_their_own():
    draws = []
    for epoch in range(2):
        for process in range(3):
            torch.manual_seed(5)
            seed_epoch(5, epoch, process)
            draws.append(torch.rand(()).item())
    # The first process goes on as it would alone.
    assert draws[0] == draws[3] == torch.rand((), generator=torch.Generator().manual_seed(5)).item()
    assert len(set(draws)) == 5


def test_samples_of_batches():
    recipe = UNEVEN
    counts = [recipe.samples_of_batch(i, 1347) for i in range(recipe.steps_per_epoch(1347))]
    assert sum(counts) == 1347
    assert counts[-1] == 67
    assert recipe.samples_of_batch(10**6, None) == 256
