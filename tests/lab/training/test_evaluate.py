import json
import sys

import pytest

from isoflop.errors import DataError, IsoflopError, RunDirectoryError, UnknownNameError
from isoflop.lab.training import train
from isoflop.lab.training.evaluate import evaluate, format_evaluation
from isoflop.lab.training.harness import LEADERBOARD, Harness

# Answers that differ in length only: the shorter is likelier, and the other by the character.
QUESTIONS = [{"question": f"def f{i}", "choices": ["x", "x" * 40], "answer": 0} for i in range(6)]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with the task `toy`, a group of it, and one whose data are missing."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (folder / "toy.jsonl").write_text(lines)
    for name, file in (("toy", "toy.jsonl"), ("lost", "lost.jsonl")):
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\n"
            "dataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {folder / file}}}}}\n"
            "output_type: multiple_choice\n"
            "test_split: test\n"
            "fewshot_split: test\n"
            "num_fewshot: 2\n"
            'doc_to_text: "{{question}}"\n'
            'doc_to_choice: "{{choices}}"\n'
            'doc_to_target: "{{answer}}"\n'
            "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
        )
    (folder / "group.yaml").write_text("group: both_toys\ntask: [toy]\n")
    return folder


@pytest.fixture
def run(tiny_language, python_files, tmp_path):
    path = tmp_path / "run"
    options = {"data": python_files, "quiet": True, "stop_after_epochs": 2}
    train(tiny_language.replace(input_shape=(64,)), path, **options)
    return path


def test_test_data(run):
    found = evaluate(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found["test"] == {
        name: lines[-1][f"test_{name}"] for name in ("perplexity", "loss", "bits_per_byte")
    }
    assert (found["epoch"], found["step"]) == (2, lines[-1]["step"])
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert f"test perplexity {found['test']['perplexity']:.4f}" in format_evaluation(found)


def test_a_vision_run(tiny_recipe, tmp_path):
    summary = train(tiny_recipe.replace(epochs=1), tmp_path, quiet=True)
    assert evaluate(tmp_path)["test"] == {"accuracy": summary["accuracy"]}
    with pytest.raises(IsoflopError, match="lm-eval measures language models"):
        evaluate(tmp_path, tasks=("hellaswag",))


def test_a_local_task(run, tasks, capsys):
    evaluate(run)
    found = evaluate(run, tasks=("toy", "both_toys"), include_path=tasks)
    assert set(found["tasks"]) == {"toy"}
    result = found["tasks"]["toy"]
    # 100 % by what it takes to write the answer; none of it by the character.
    assert result["measures"]["acc"] == 1
    assert result["metric"] == "acc_norm"
    assert result["score"] == 100 * result["measures"]["acc_norm"]
    assert (result["few_shot"], result["samples"]) == (2, 6)
    assert "leaderboard_mean" not in found
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert {"test", "tasks"} <= found.keys()
    assert "(2-shot, 6 samples)" in format_evaluation(found)
    assert capsys.readouterr().out == ""


def test_results_of_another_checkpoint_are_dropped(run, tiny_language, python_files):
    evaluate(run)
    recipe = tiny_language.replace(input_shape=(64,))
    train(recipe, run, data=python_files, resume=True, quiet=True)
    (run / "evaluation.json").write_text(json.dumps({"step": 1, "tasks": {"toy": {}}}))
    found = evaluate(run)
    assert found["epoch"] == 3
    assert "tasks" not in found


def test_the_leaderboard(monkeypatch, run):
    """Its settings and its mean; its tasks themselves need the network."""
    asked = []

    def simple_evaluate(model, *, tasks, num_fewshot, **options):
        (name,) = tasks
        asked.append((name, num_fewshot))
        results = {name: {"alias": name, "acc,none": 0.25, "acc_norm,none": 0.35}}
        groups, samples = {}, {name: {"effective": 7}}
        if name == "mmlu":  # a group of groups
            groups = {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_a", "mmlu_b"]}
            samples = {"mmlu_a": {"effective": 3}, "mmlu_b": {"effective": 4}}
        return {
            "results": results, "group_subtasks": groups, "n-samples": samples, "n-shot": {}
        }  # fmt: skip

    monkeypatch.setattr("lm_eval.simple_evaluate", simple_evaluate)
    monkeypatch.setattr(Harness, "__init__", lambda self, *_: setattr(self, "_manager", None))
    found = evaluate(run, tasks=tuple(LEADERBOARD))
    assert dict(asked) == {
        "arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "mmlu": 5, "winogrande": 5
    }  # fmt: skip
    assert [found["tasks"][name]["score"] for name, _ in asked] == [35, 35, 25, 25, 25]
    assert found["tasks"]["mmlu"]["samples"] == 7
    assert found["tasks"]["mmlu"]["few_shot"] == 5
    assert found["leaderboard_mean"] == pytest.approx(29)
    assert "leaderboard mean 29.00" in format_evaluation(found)


def test_tasks_that_cannot_be_run(run, tasks):
    with pytest.raises(IsoflopError, match="'lost' of lm-eval failed"):
        evaluate(run, tasks=("toy", "lost"), include_path=tasks)
    # What was measured before is kept.
    assert set(json.loads((run / "evaluation.json").read_text())["tasks"]) == {"toy"}
    with pytest.raises(IsoflopError, match="no folder"):
        evaluate(run, tasks=("toy",), include_path=tasks / "absent")


def test_unknown_tasks(run, tasks, monkeypatch):
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager
    # Without lm-eval's own tasks, which take long to read.
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        lambda include_path, include_defaults=True: manager(
            include_path=include_path, include_defaults=False
        ),
    )
    with pytest.raises(UnknownNameError, match=r"no task 'toys'.*toy"):
        evaluate(run, tasks=("toys",), include_path=tasks)
    assert not (run / "evaluation.json").exists()


def test_without_lm_eval(run, monkeypatch):
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(IsoflopError, match=r"pip install 'isoflop\[eval\]'"):
        evaluate(run, tasks=("hellaswag",))


def test_no_run_and_no_data(run, tmp_path):
    with pytest.raises(RunDirectoryError):
        evaluate(tmp_path / "absent")
    with pytest.raises(DataError, match="no folder"):
        evaluate(run, data=tmp_path / "absent")
