"""Measuring the model of a run after its training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.files import read_json, write_json
from isoflop.lab.tasks import TASKS, Language
from isoflop.lab.training.distributed import build_accelerator
from isoflop.lab.training.harness import LEADERBOARD, Harness
from isoflop.lab.training.restore import restore
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.registry import names_in


def evaluate(
    path: str | Path,
    *,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    include_path: str | Path | None = None,
) -> dict[str, Any]:
    """Measure the model of a run, as its latest checkpoint has it.

    Args:
        path: The run directory. Results are added to its `evaluation.json`, one by one; those of
            another checkpoint are dropped.
        tasks: Tasks of lm-eval, for language models: those of the Open LLM leaderboard with its
            numbers of examples in the prompt, others with their own. None measures on the test data
            of the recipe.
        data: Folder of the data set; None for where it was in training. With `tasks` the tokenizer is
            all that is needed of it.
        include_path: Folder of further tasks.

    Returns:
        All results of the checkpoint: its `epoch` and `step`; on test data, `test`; by
        lm-eval, `tasks`, and, once all five tasks of the leaderboard are there,
        `leaderboard_mean` in percent.

    Raises:
        RunDirectoryError: There is no run, or it has no checkpoint.
        DataError: The data are missing or damaged.
        UnknownNameError: lm-eval has no such task.
        IsoflopError: The model is no language model, or lm-eval is not installed.
    """
    run = RunDirectory(path)
    restored = restore(run.path)
    recipe = restored.recipe
    task = TASKS.get(recipe.task)
    folder = read_json(run.config_path)["data"] if data is None else data
    accelerator = build_accelerator(recipe.mixed_precision, shard=False)
    if accelerator.num_processes > 1:
        raise IsoflopError("A model is evaluated by one process. Leave out torchrun.")
    found: dict[str, Any] = {"epoch": restored.epoch, "step": restored.step}
    if run.evaluation_path.exists():
        before = read_json(run.evaluation_path)
        if before.get("step") == restored.step:
            found = before
    if not tasks:
        dataset = task.load(recipe, folder).to(accelerator.device)
        model = accelerator.prepare_model(restored.model, evaluation_mode=True)
        found["test"] = dataset.evaluate(model, accelerator)
        write_json(run.evaluation_path, found)
        return found
    if not isinstance(task, Language):
        raise IsoflopError(
            f"lm-eval measures language models; the run in {run.path} trained {recipe.model} for "
            f"{recipe.task}. Leave out --tasks to measure it on its test data."
        )
    tasks = names_in(tasks, "tasks")
    harness = Harness(tasks, include_path)
    model = restored.model.to(accelerator.device)
    model_of_harness = harness.wrap(model, task.tokenizer(recipe, folder), recipe.input_shape[0])
    for name in tasks:
        found.setdefault("tasks", {}).update(harness.run(model_of_harness, name))
        done = found["tasks"]
        if done.keys() >= LEADERBOARD.keys():
            scores = [done[name]["score"] for name in LEADERBOARD]
            found["leaderboard_mean"] = sum(scores) / len(scores)
        write_json(run.evaluation_path, found)
    return found


def format_evaluation(found: dict[str, Any]) -> str:
    """Return what `evaluate` returned as text."""
    lines = [f"epoch {found['epoch']}, step {found['step']}"]
    if "test" in found:
        lines += [f"test {name} {value:.4f}" for name, value in found["test"].items()]
    for name, result in found.get("tasks", {}).items():
        error = "" if result["stderr"] is None else f" ± {result['stderr']:.2f}"
        lines.append(
            f"{name} {result['metric']} {result['score']:.2f}{error} "
            f"({result['few_shot']}-shot, {result['samples']} samples)"
        )
    if "leaderboard_mean" in found:
        lines.append(f"leaderboard mean {found['leaderboard_mean']:.2f}")
    return "\n".join(lines)
