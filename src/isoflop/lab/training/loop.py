"""The training loop, on Accelerate."""

import contextlib
import dataclasses
import itertools
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from isoflop.budget import TOLERANCE
from isoflop.errors import IsoflopError
from isoflop.files import write_json, write_lines
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks import TASKS, TaskData
from isoflop.lab.training.accumulate import micro_batches
from isoflop.lab.training.backbone import find_backbone
from isoflop.lab.training.checkpoint import (
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from isoflop.lab.training.configs import build_method
from isoflop.lab.training.distributed import (
    average_statistics,
    build_accelerator,
    check_batches,
    prepare,
    seed_epoch,
)
from isoflop.lab.training.interval import Interval
from isoflop.lab.training.kernels import choose_kernels
from isoflop.lab.training.observer import Observer
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.lab.training.setup import Job, Setup, build, count_weights
from isoflop.lab.training.sharding import gathered, spread_model_state, spread_optimizer_state
from isoflop.lab.training.tracking import Display, Tracker, messages
from isoflop.methods.base import Method
from isoflop.optional import require
from isoflop.transforms import Transform


@dataclass(kw_only=True)
class Progress:
    """What a run has done so far; part of every checkpoint.

    Attributes:
        epoch: Epochs completed.
        step: Optimizer steps taken.
        measures: The task's measures on the test data after the latest epoch.
        best: The best value after any epoch of the measure that heads the task's results.
        training_flops: FLOPs of all forward and backward passes.
        seconds: Time spent, evaluation included but spectra not, over all processes that resumed one
            another.
    """

    epoch: int = 0
    step: int = 0
    measures: dict[str, float] = dataclasses.field(default_factory=dict)
    best: float | None = None
    training_flops: int = 0
    seconds: float = 0.0


_OPTIONS = ("transform", "sparsity", "method", "allocation", "pattern", "storage", "seed")
"""What a summary repeats of the configuration."""


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    transform: Transform | None = None,
    method: str | Method = "dense",
    sparsity: float | None = None,
    allocation: str = "uniform",
    pattern: str = "unstructured",
    storage: Literal["masked", "compressed"] = "masked",
    scope: Literal["model", "layers"] | None = None,
    seed: int = 0,
    data: str | Path | None = None,
    accumulate: int = 1,
    workers: int | None = None,
    spectra: str | None = None,
    shard: bool = False,
    backbone: str | Path | None = None,
    backbone_gap: float | None = None,
    resume: bool = False,
    quiet: bool = False,
    stop_after_epochs: int | None = None,
) -> dict[str, Any]:
    """Train one model and write a run directory that says everything about it.

    Args:
        recipe: All hyperparameters.
        out: The run directory; must be new or empty unless `resume` is set.
        transform: Configuration of a transform, such as ``SparseWide(sparsity=0.75)``; None trains
            the recipe's own model.
        method: Name of a training method, which then takes the recipe's values, or a method
            itself. ``"dense"`` with a transform trains the enlarged model without masks, which is
            the upper bound; without one it trains the plain dense model.
        sparsity: Sparsity of plain sparse training, that is, without a transform.
        allocation: How plain sparse training spreads its sparsity over the layers.
        pattern: Which weights may be non-zero together, such as ``"2:4"``.
        storage: How sparse weights are stored, ``"masked"`` or ``"compressed"``, which also runs each
            layer on what is fastest for it (`isoflop.accelerate`).
        scope: Whether the ``"model"`` or each of its ``"layers"`` meets the FLOP budget; None for
            the recipe's.
        seed: Seed of initialisation, masks, order and augmentation.
        data: Folder of the data set, for those that need one.
        accumulate: Parts that each process cuts its share of a batch into, to be run one after
            another, where a whole one needs too much memory. The step is the same up to rounding
            (but for BatchNorm, which sees each part alone).
        workers: Processes that read samples for each training process, where these stay in files; 0
            reads them in the training process, None as many as are useful. Does not change the result.
        spectra: How often to measure the spectra of the masks, such as ``"every=1epoch"`` or
            ``"every=100steps"``; by default never. They are measured before the first step too.
        shard: Spread parameters, masks, gradients and optimizer state over all processes (FSDP2),
            instead of keeping a copy in each. Does not change the result but for rounding.
        backbone: Directory of a run that trained a classifier, whose layers but the last the recipe's
            model begins with. Their masks stay as they are; `method` is left at its default.
        backbone_gap: Largest relative gap between the FLOPs of these layers and of the dense model's;
            by default one part in a million.
        resume: Continue the run in `out`, if there is one. The result is the same, bit for bit,
            as that of a run that was never interrupted; on several processes, up to rounding.
        quiet: Show no progress.
        stop_after_epochs: Stop after that many epochs, as if interrupted there; the schedule stays
            that of the whole recipe.

    Returns:
        The summary, as in `summary.json`; for a run that stopped early, the summary so far.

    Raises:
        IsoflopError: Something cannot work; nothing has been written then.
        RunDirectoryError: `out` is in use, holds a run already, or a run with other options.
        DataError: The data are missing or damaged.
        WorkersError: The processes do not train the same model.
    """
    if shard and (storage != "masked" or spectra is not None):
        raise IsoflopError(
            "A sharded model has masked storage, and its spectra are not measured during training: "
            "leave out --storage and --spectra, and use `isoflop spectra RUN` afterwards."
        )
    if scope not in (None, recipe.scope) and transform is None:
        raise IsoflopError(
            "The scope says what meets the FLOP budget of a transform: leave it out (--scope), or give a "
            "transform, such as --transform wide."
        )
    if backbone_gap is not None and backbone is None and not resume:
        raise IsoflopError("--backbone-gap is for runs with a --backbone: leave it out.")
    accelerator = build_accelerator(recipe.mixed_precision, shard=shard)
    require("tensorboard", "train")
    run = RunDirectory(out)
    method = build_method(method, recipe) if isinstance(method, str) else method
    found = find_backbone(
        backbone, run, resume=resume, tolerance=TOLERANCE if backbone_gap is None else backbone_gap
    )
    if found is not None:
        method = found.method(method)
        if found.sparse and recipe.sparse_lr is not None:
            recipe = dataclasses.replace(recipe, lr=recipe.sparse_lr)
    job = Job(
        recipe=recipe,
        transform=transform,
        method=method,
        sparsity=sparsity,
        allocation=allocation,
        pattern=pattern,
        storage=storage,
        scope=scope or recipe.scope,
        seed=seed,
        data=None if data is None else str(data),
        accumulate=accumulate,
        spectra=spectra,
        backbone=found,
    )
    job.check()
    if stop_after_epochs is not None and stop_after_epochs < 1:
        raise IsoflopError(f"stop_after_epochs must be at least 1, not {stop_after_epochs}.")
    if workers is not None and workers < 0:
        raise IsoflopError(f"workers must not be negative, not {workers}.")
    share = recipe.batch_size // accelerator.num_processes
    if accumulate > max(1, share):
        raise IsoflopError(
            f"accumulate {accumulate} exceeds the {share} samples that each process has of a batch. "
            "Choose a smaller one."
        )
    if accelerator.is_main_process:
        run.check(job.config(), resume=resume)
    accelerator.wait_for_everyone()
    if resume and (summary := run.summary()) is not None:
        return summary

    dataset = TASKS.get(recipe.task).load(recipe, data, workers)
    check_batches(recipe, dataset.samples, accelerator.num_processes)
    steps = recipe.steps_per_epoch(dataset.samples)
    calibration = dataset.train_batches(
        recipe.batch_size,
        seed=seed,
        epoch=0,
        drop_last=recipe.drop_last,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    main = accelerator.is_main_process
    with messages(quiet=quiet or not main):
        setup = build(
            job,
            steps * recipe.epochs,
            accelerator.device,
            calibration,
            sharded=shard,
            bf16=accelerator.mixed_precision == "bf16",
        )
    del calibration  # which ends the worker processes that read it
    last_epoch = min(recipe.epochs, stop_after_epochs or recipe.epochs)
    claim = run.claim(job.config(), resume=resume) if main else contextlib.nullcontext()
    with claim, _reproducible():
        return _run(job, setup, dataset, run, accelerator, last_epoch, quiet=quiet)


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    """Keep cuDNN from choosing algorithms by speed, or such that add in changing order."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _run(
    job: Job,
    setup: Setup,
    dataset: TaskData,
    run: RunDirectory,
    accelerator: Any,
    last_epoch: int,
    *,
    quiet: bool,
) -> dict[str, Any]:
    recipe, sparsifier = job.recipe, setup.sparsifier
    metric = TASKS.get(recipe.task).metric
    steps = recipe.steps_per_epoch(dataset.samples)
    model = choose_kernels(setup.model, job, run, accelerator)
    setup = dataclasses.replace(setup, model=model)
    interval = None if job.spectra is None else Interval.parse(job.spectra)
    observer = Observer(setup.model, sparsifier, interval, steps)
    progress = Progress()
    require("accelerate.utils", "train").set_seed(job.seed)
    state = load_checkpoint(run.path)
    if state is not None:
        setup.model.load_state_dict(spread_model_state(state["model"], setup.model))
        optimizer_state = spread_optimizer_state(state["optimizer"], setup.optimizer)
        setup.optimizer.load_state_dict(optimizer_state)
        sparsifier.load_state_dict(state["sparsifier"])
        observer.load_state_dict(state["observer"])
        dataset.load_state_dict(state["data"])
        set_random_state(state["random"])
        progress = Progress(**state["progress"])
    sparsifier.check_workers()
    model = prepare(setup.model, accelerator, sharded=setup.sharded)
    optimizer = accelerator.prepare_optimizer(setup.optimizer)
    if state is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    dataset = dataset.to(accelerator.device)

    main = accelerator.is_main_process
    if main:
        run.cut(progress.step if state is not None else -1)
    seen = steps * recipe.batch_size
    if recipe.steps is None and recipe.tokens is None and dataset.samples is not None:
        seen = min(seen, dataset.samples)
    display = Display(
        recipe.epochs, seen * recipe.epochs, seen * progress.epoch, metric, quiet=quiet or not main
    )
    tracker = Tracker(run, progress.step) if main else contextlib.nullcontext()
    with tracker as log, display.shown():
        if state is None:
            observer.start(log)

        def after_step() -> None:
            observer.after_step(log, progress.step, progress.training_flops)

        while progress.epoch < last_epoch:
            start = time.perf_counter()
            apart = observer.spectra_seconds
            loss = _train_epoch(
                job,
                setup,
                model,
                optimizer,
                accelerator,
                dataset,
                progress,
                display,
                after_step,
            )
            average_statistics(setup.model, accelerator)
            progress.measures = dataset.evaluate(model, accelerator)
            value = progress.measures[metric.name]
            progress.best = value if progress.best is None else metric.better(progress.best, value)
            progress.epoch += 1
            apart = observer.spectra_seconds - apart
            progress.seconds += time.perf_counter() - start - apart
            metrics = {
                "epoch": progress.epoch,
                "step": progress.step,
                "lr": optimizer.param_groups[0]["lr"],
                "train_loss": loss,
                **{f"test_{name}": value for name, value in progress.measures.items()},
                "density": sparsifier.density(),
                "seconds": progress.seconds,
                "training_flops": progress.training_flops,
            }
            display.epoch(metrics)
            scaler = accelerator.scaler
            state = {
                "model": setup.model.state_dict(),
                "optimizer": setup.optimizer.state_dict(),
                "sparsifier": sparsifier.state_dict(),
                "observer": observer.state_dict(),
                "data": dataset.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random": random_state(),
                "progress": dataclasses.asdict(progress),
            }
            state = gathered(state, keep=main) if setup.sharded else state
            if log is not None:
                # The metrics come first: a line without checkpoint is cut on resume, but a line
                # that was never written could not be restored.
                log.log(metrics)
                save_checkpoint(run.path, progress.epoch, state)
                if dataset.skipped:
                    write_lines(run.skipped_path, dataset.skipped)
                if sparsifier.plan is not None:
                    sparsifier.plan.save(run.plan_path)
            accelerator.wait_for_everyone()
    summary = _summary(job, setup, dataset, progress, accelerator)
    summary["spectra_seconds"] = observer.spectra_seconds
    summary["skipped"] = len(dataset.skipped)
    if main and progress.epoch == recipe.epochs:
        write_json(run.summary_path, summary)
    return summary


def _train_epoch(
    job: Job,
    setup: Setup,
    model: nn.Module,
    optimizer: Any,
    accelerator: Any,
    dataset: TaskData,
    progress: Progress,
    display: Display,
    after_step: Callable[[], None],
) -> float:
    """Train for one epoch and return the mean loss."""
    recipe, sparsifier = job.recipe, setup.sparsifier
    processes = accelerator.num_processes
    steps = recipe.steps_per_epoch(dataset.samples)
    task = TASKS.get(recipe.task)
    total = torch.zeros(2, device=accelerator.device)
    model.train()
    seed_epoch(job.seed, progress.epoch, accelerator.process_index)
    batches = dataset.train_batches(
        recipe.batch_size,
        seed=job.seed,
        epoch=progress.epoch,
        drop_last=recipe.drop_last,
        rank=accelerator.process_index,
        world_size=processes,
    )
    for index, (inputs, targets) in enumerate(itertools.islice(batches, steps)):
        rate = recipe.learning_rate(progress.step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        flops = 2 * sparsifier.step_macs()
        # Gradients are averaged over the processes, of which some may have a sample more.
        count = recipe.samples_of_batch(index, dataset.samples)
        # As many parts on every process, also of a last batch that is smaller.
        least = min(job.accumulate, max(1, count // processes))
        parts = list(micro_batches(inputs, targets, least))
        for part, (x, y) in enumerate(parts, 1):
            # Processes exchange their gradients once, when these are complete.
            apart = contextlib.nullcontext() if part == len(parts) else accelerator.no_sync(model)
            with apart:
                loss = task.loss(recipe, model(x), y)
                accelerator.backward(loss * (len(y) * processes / count))
            total += torch.stack([loss.detach() * len(y), loss.new_tensor(len(y))])
        if recipe.clip_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

        progress.step += 1
        progress.training_flops += flops * count
        display.advance(count)
        after_step()
    total = accelerator.reduce(total)
    mean = float(total[0] / total[1])
    if not math.isfinite(mean):
        raise IsoflopError(
            f"The training diverged in epoch {progress.epoch + 1}: the loss is {mean}. Lower the "
            "learning rate (--lr)."
        )
    return mean


def _summary(
    job: Job, setup: Setup, dataset: TaskData, progress: Progress, accelerator: Any
) -> dict[str, Any]:
    config = job.config()
    nnz, numel = count_weights(setup)
    sparsifier = setup.sparsifier
    macs, unmasked_macs = sparsifier.forward_macs()
    metric = TASKS.get(job.recipe.task).metric.name
    return {
        **{key: config[key] for key in _OPTIONS},
        "recipe": job.recipe.name,
        "epochs": progress.epoch,
        "steps": progress.step,
        "metric": metric,
        **progress.measures,
        f"best_{metric}": progress.best,
        **dataset.facts(),
        "macs": macs,
        "dense_macs": setup.dense_macs,
        "unmasked_macs": unmasked_macs,
        "relative_gap": (macs - setup.dense_macs) / setup.dense_macs,
        "average_macs": sparsifier.average_macs(),
        "training_flops": progress.training_flops,
        "nnz": nnz,
        "numel": numel,
        "density": sparsifier.density(),
        **({} if setup.backbone is None else {"backbone": setup.backbone}),
        "seconds": progress.seconds,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "sharded": setup.sharded,
        "mixed_precision": str(accelerator.mixed_precision),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: metadata.version(name) for name in ("accelerate", "isoflop")},
        },
    }
