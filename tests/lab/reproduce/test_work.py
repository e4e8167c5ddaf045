import dataclasses
import errno
import json
import math

import pytest
from tests.lab.reproduce.works import Note

import isoflop
from isoflop.lab.reproduce import DataFolders
from isoflop.lab.reproduce.sources import Evaluation, Training
from isoflop.lab.reproduce.work import EvaluationWork, RunWork, TimingWork, execute, is_done
from isoflop.lab.training import trainer
from isoflop.lab.training.harness import LEADERBOARD

TRAINING = Training(
    recipe="digits",
    changes={"base_width": 4, "epochs": 2, "update_every": 8},
    transform=isoflop.SparseWide(sparsity=0.5),
    method="rigl",
)


def run_of(training=TRAINING, seed=0, data=None):
    return training.work(seed, DataFolders(default=data))


def test_the_name_follows_from_the_options():
    name = run_of().name
    assert name.startswith("runs/digits-wide-0.5-rigl-")
    assert name.endswith("/seed0")
    assert run_of(data="elsewhere").name == name
    assert run_of(seed=1).name == name.replace("seed0", "seed1")
    for change in (
        {"spectra": "every=1epoch"},
        {"pattern": "2:4"},
        {"options": {"alpha": 0.2}},
        {"changes": {**TRAINING.changes, "lr": 0.2}},
        {"transform": isoflop.SparseWide(sparsity=0.5, init="dense_fan")},
        {"backbone": Training(recipe="digits")},
    ):
        other = run_of(dataclasses.replace(TRAINING, **change)).name
        assert other.split("/")[1] != name.split("/")[1], change


def test_a_run_is_done_and_then_left_alone(tmp_path):
    work = run_of()
    assert not is_done(work, tmp_path)
    assert execute(work, tmp_path) is None
    assert is_done(work, tmp_path)
    summary = work.result(tmp_path)
    assert summary is not None
    assert TRAINING.read(summary) == summary["accuracy"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert execute(work, tmp_path) is None
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_a_full_disk_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    work = run_of()
    assert execute(work, tmp_path / "whole") is None

    save = trainer.save_checkpoint

    def full(directory, epoch, state):
        if epoch == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(directory, epoch, state)

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    error = execute(work, tmp_path / "cut")
    assert error is not None
    assert "disk is full" in error
    assert not is_done(work, tmp_path / "cut")
    assert len((tmp_path / "cut" / work.name / "metrics.jsonl").read_text().splitlines()) == 2

    def not_again(*args, **options):
        assert len(epochs) < 1, "the first epoch was trained again"
        epochs.append(1)
        return train_epoch(*args, **options)

    epochs = []
    train_epoch = trainer.Trainer.train_epoch
    monkeypatch.setattr(trainer.Trainer, "train_epoch", not_again)
    monkeypatch.setattr(trainer, "save_checkpoint", save)
    assert execute(work, tmp_path / "cut") is None
    whole, cut = (dict(work.result(tmp_path / name) or {}) for name in ("whole", "cut"))
    assert whole.pop("seconds") > 0
    assert cut.pop("seconds") > 0
    assert whole == cut


def test_a_full_disk_is_seen_behind_other_errors(tmp_path):
    error = execute(Note(label="a", outcome="full"), tmp_path)
    assert error is not None
    assert "disk is full" in error


def test_mistakes_are_said_as_they_are(tmp_path):
    (tmp_path / run_of().name).mkdir(parents=True)
    (tmp_path / run_of().name / "letter.txt").write_text("dear")
    error = execute(run_of(), tmp_path)
    assert error is not None
    assert "holds files of something else (letter.txt)" in error
    assert not list(tmp_path.rglob("*.error"))


def test_a_damaged_result_is_none(tmp_path):
    path = tmp_path / run_of().name / "summary.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert not is_done(run_of(), tmp_path)


def test_other_defaults_are_no_result(tmp_path):
    work = run_of()
    assert execute(work, tmp_path) is None
    path = tmp_path / work.name / "config.json"
    config = json.loads(path.read_text())
    del config["recipe"]["clip_norm"]  # a value that recipes had not then
    path.write_text(json.dumps(config))
    assert is_done(run_of(data="elsewhere"), tmp_path)
    config["recipe"]["eps"] = 1e-3
    path.write_text(json.dumps(config))
    assert not is_done(work, tmp_path)
    error = execute(work, tmp_path)
    assert error is not None
    assert "had other options (recipe.eps: 0.001 became 1e-08" in error


def test_timings(tmp_path):
    arguments = (
        "matmul", "--fixed-size", "--inputs", "8", "--outputs", "8", "--batch", "4", "--repeats",
        "1", "--peers", "none", "--skip", "dense_compiled",
    )  # fmt: skip
    work = TimingWork(arguments=arguments, sparsities=(0.5, 0.75))
    assert work.alone
    assert execute(work, tmp_path) is None
    results = work.result(tmp_path)
    assert results is not None
    assert [result["workload"]["sparsity"] for result in results] == [0.5, 0.75]
    assert [path.name for path in (tmp_path / "bench").iterdir()] == [work.name.split("/")[1]]

    wrong = TimingWork(arguments=("matmul", "--batch", "0"), sparsities=(0.5,))
    assert "--batch must be at least 1" in str(execute(wrong, tmp_path))
    assert not is_done(wrong, tmp_path)


def test_an_evaluation_needs_its_training_and_all_tasks(tmp_path):
    work = EvaluationWork(training=run_of())
    assert work.needs == (run_of(),)
    path = tmp_path / work.name
    path.parent.mkdir(parents=True)
    scores = {name: {"score": 10.0 * i} for i, name in enumerate(LEADERBOARD)}
    path.write_text(json.dumps({"tasks": scores}))
    assert not is_done(work, tmp_path)
    path.write_text(json.dumps({"tasks": scores, "leaderboard_mean": 20.0}))
    found = work.result(tmp_path)
    assert found is not None
    for measure, value in {"leaderboard_mean": 20.0, "mmlu": 30.0}.items():
        assert Evaluation(training=TRAINING, measure=measure).read(found) == value


def test_a_transfer_needs_its_backbone():
    dense = Training(recipe="digits")
    work = run_of(dataclasses.replace(dense, backbone=dense), seed=2)
    (need,) = work.needs
    assert isinstance(need, RunWork)
    assert need.job.seed == 2
    assert need.name == run_of(dense, seed=2).name != work.name


@pytest.mark.parametrize("measure", [None, "accuracy", "miou"])
def test_measures(measure):
    training = dataclasses.replace(TRAINING, measure=measure)
    summary = json.loads('{"metric": "perplexity", "perplexity": 3, "accuracy": 5}')
    if measure == "miou":
        with pytest.raises(isoflop.IsoflopError, match="no 'miou'"):
            training.read(summary)
    else:
        assert training.read(summary) == {None: 3, "accuracy": 5}[measure]


@pytest.mark.parametrize("value", [None, math.inf, math.nan, "high"])
def test_results_that_are_not_finite_are_none(value):
    with pytest.raises(isoflop.IsoflopError, match="not finite"):
        TRAINING.read({"metric": "accuracy", "accuracy": value})
