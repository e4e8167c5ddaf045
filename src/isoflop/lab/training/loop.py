"""Training one model: the options, checked, and the run that they make."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from isoflop.budget import TOLERANCE
from isoflop.errors import IsoflopError
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks import TASKS
from isoflop.lab.training.backbone import find_backbone
from isoflop.lab.training.configs import build_method
from isoflop.lab.training.distributed import build_accelerator, check_batches
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.lab.training.setup import Job, build
from isoflop.lab.training.tracking import messages
from isoflop.lab.training.trainer import Trainer
from isoflop.methods.base import Method
from isoflop.optional import require
from isoflop.transforms import Transform


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
    scoring_batches = dataset.train_batches(
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
            scoring_batches,
            sharded=shard,
            bf16=accelerator.mixed_precision == "bf16",
        )
    del scoring_batches  # which ends the worker processes that read it
    last_epoch = min(recipe.epochs, stop_after_epochs or recipe.epochs)
    claim = run.claim(job.config(), resume=resume) if main else contextlib.nullcontext()
    with claim, _reproducible():
        return Trainer(job, setup, dataset, run, accelerator, quiet=quiet).fit(last_epoch)


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
