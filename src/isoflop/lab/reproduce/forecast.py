"""What a table will cost: FLOPs from plans, and time from a few measured steps."""

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import DataError
from isoflop.kernels import accelerate_
from isoflop.lab.reproduce.work import RunWork, Work, is_done
from isoflop.lab.tasks import TASKS
from isoflop.lab.training.setup import Job, build
from isoflop.methods import Static
from isoflop.optional import require
from isoflop.plan import Plan
from isoflop.sparsity.accounting import training_flops
from isoflop.sparsity.plain import plain_plan
from isoflop.text import aligned
from isoflop.transforms import transform

SAMPLES = {
    "digits": 1347,
    "fashion-mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "imagenet": 1_281_167,
    "coco": 117_266,
    "cityscapes": 2975,
}
"""Training samples of the data sets, so that nothing need be loaded to plan."""

_WARM_UP = 1
_MEASURED = 3


def forecast(
    works: Sequence[Work],
    folder: Path,
    *,
    calibrate: bool,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Say what is to be done, what it costs, and how long it takes. Trains nothing.

    Args:
        works: The units of work.
        folder: Where results are.
        calibrate: Whether to measure a few steps of every distinct model at its batch size, with the
            threads of this process.
        tell: Called with lines on the progress.

    Returns:
        Plain data: `runs`, each with `run`, `done`, `flops` (those of the whole training) and
        `seconds` (of its training steps, evaluation not included; None where unknown); `flops` and
        `seconds` of all, and `flops_left` and `seconds_left` of those that are not done; and
        `notes`, why times are unknown.
    """
    costs: dict[str, int] = {}
    times: dict[str, float | None] = {}
    notes: list[str] = []
    runs = []
    for work in works:
        entry: dict[str, Any] = {"run": work.name, "done": is_done(work, folder)}
        entry |= {"flops": None, "seconds": None}
        if isinstance(work, RunWork):
            job = work.job
            key = _key(job, seed=0)
            if key not in costs:
                costs[key] = job_flops(job)
            entry["flops"] = costs[key]
            model = _key(job, seed=0, method=None)
            if calibrate and not entry["done"] and model not in times:
                tell(f"measuring a few steps of {work.name}")
                times[model] = _step_seconds(job, notes)
            seconds = times.get(model)
            if seconds is not None:
                entry["seconds"] = seconds * job_steps(job)
        runs.append(entry)
    left = [entry for entry in runs if not entry["done"]]
    return {
        "runs": runs,
        "flops": _sum(runs, "flops"),
        "flops_left": _sum(left, "flops"),
        "seconds_left": _sum(left, "seconds") if calibrate else None,
        "notes": list(dict.fromkeys(notes)),
    }


def job_steps(job: Job) -> int:
    """Return the optimizer steps of a job.

    Raises:
        IsoflopError: The size of its data is not known beforehand.
    """
    return job.recipe.epochs * job.recipe.steps_per_epoch(SAMPLES.get(job.recipe.dataset))


def job_flops(job: Job) -> int:
    """Return the FLOPs of a whole training, from the exact MACs of its plan on the meta device."""
    recipe = job.recipe
    steps = job_steps(job)
    seen = steps * recipe.batch_size
    if recipe.steps is None and recipe.tokens is None:
        # The last batch of an epoch may be smaller.
        seen = min(seen, recipe.epochs * SAMPLES[recipe.dataset])
    return round(training_flops(job_plan(job), job.method, steps) * seen / steps)


def job_plan(job: Job) -> Plan:
    """Return the plan of a job, made on the meta device."""
    task = TASKS.get(job.recipe.task)
    with torch.device("meta"):
        model = task.build_model(job.recipe)
        inputs = task.example_inputs(job.recipe)
    if job.transform is not None:
        return transform(model, job.transform, example_inputs=inputs, scope=job.scope)[1]
    if job.sparsity is None:
        return plain_plan(model, 0.0, example_inputs=inputs)
    return plain_plan(model, job.sparsity, example_inputs=inputs, allocation=job.allocation)


def _step_seconds(job: Job, notes: list[str]) -> float | None:
    """Return the time of a training step, or None if the data are not there."""
    recipe = job.recipe
    task = TASKS.get(recipe.task)
    try:
        data = task.load(recipe, job.data)
    except DataError as error:
        notes.append(f"No time is known: {error}")
        return None
    if job.method.masks_weights:
        # What a step costs does not depend on how the masks came about.
        job = dataclasses.replace(job, method=Static())
    device = require("accelerate", "train").Accelerator().device
    batches = data.to(device).train_batches(recipe.batch_size, seed=0, epoch=0, drop_last=True)
    batches = list(itertools.islice(batches, _WARM_UP + _MEASURED))
    setup = build(job, job_steps(job), device, iter(batches))
    model = setup.model
    if job.storage == "compressed":
        accelerate_(model, example_inputs=(batches[0][0],))
    model.train()
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(recipe.mixed_precision or "")
    times = []
    for inputs, targets in batches:
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            loss = task.loss(recipe, model(inputs), targets)
        loss.backward()
        setup.optimizer.step()
        setup.optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[_WARM_UP:])


def _key(job: Job, **changes: Any) -> str:
    """Return what jobs of equal cost have in common; attributes in `changes` do not count."""
    config = {**job.config(), "seed": 0, "data": None, "spectra": None, **changes}
    if "method" in changes:
        # Of a model, only how it is built and the batch matter for the time of a step.
        config["method"] = job.method.masks_weights
        config["method_config"] = None
        keep = ("task", "model", "num_classes", "input_shape", "base_width", "batch_size")
        config["recipe"] = {name: config["recipe"][name] for name in keep}
    return json.dumps(config, sort_keys=True)


def _sum(runs: Sequence[dict[str, Any]], name: str) -> Any:
    known = [run[name] for run in runs if run[name] is not None]
    return sum(known) if known else None


def format_forecast(title: str, found: dict[str, Any], jobs: int) -> str:
    """Return a forecast as text.

    Args:
        title: Title of the table.
        found: What `forecast` returned.
        jobs: How many runs there are at a time.
    """
    runs = found["runs"]
    rows = [("run", "done", "FLOPs", "time")]
    for run in runs:
        done = "yes" if run["done"] else "no"
        flops = "" if run["flops"] is None else f"{run['flops']:.3e}"
        seconds = "" if run["done"] else _duration(run["seconds"])
        rows.append((run["run"], done, flops, seconds))
    finished = sum(run["done"] for run in runs)
    total = found["flops"] or 0
    left = found["flops_left"] or 0
    lines = [
        *aligned(rows, left=(0, 1)),
        "",
        f"{len(runs)} runs, {finished} done; {total:.3e} FLOPs, {left:.3e} left",
    ]
    if found["seconds_left"] is not None:
        at_a_time = f" with {jobs} at a time" if jobs > 1 else ""
        lines.append(
            f"about {_duration(found['seconds_left'] / jobs)} left{at_a_time}, evaluation not included"
        )
    return "\n".join([title, "", *lines, *found["notes"]])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
