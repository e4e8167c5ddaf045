"""The training loop, on Accelerate."""

import contextlib
import dataclasses
import itertools
import math
import platform
import time
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import IsoflopError
from isoflop.files import write_json, write_lines
from isoflop.lab.tasks import TASKS, TaskData
from isoflop.lab.training.accumulate import micro_batches
from isoflop.lab.training.checkpoint import (
    Checkpoint,
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from isoflop.lab.training.distributed import average_statistics, prepare, seed_epoch
from isoflop.lab.training.interval import Interval
from isoflop.lab.training.kernels import choose_kernels
from isoflop.lab.training.observer import Observer
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.lab.training.setup import Job, Setup, count_weights
from isoflop.lab.training.tracking import Display, Tracker
from isoflop.optional import require

_OPTIONS = ("transform", "sparsity", "method", "allocation", "pattern", "storage", "seed")
"""What a summary repeats of the configuration."""


class Trainer:
    """Trains a model and keeps its run directory, from the latest checkpoint on if there is one.

    Args:
        job: What to train.
        setup: The model, its optimizer and its sparsifier.
        data: The data.
        run: The run directory, which is claimed.
        accelerator: Accelerate's.
        quiet: Show no progress.

    Attributes:
        model: The model as it is called, wrapped for several processes.
        optimizer: The optimizer as it is called.
        progress: What the run has done so far.
        resumed: Whether there was a checkpoint.
    """

    def __init__(
        self,
        job: Job,
        setup: Setup,
        data: TaskData,
        run: RunDirectory,
        accelerator: Any,
        *,
        quiet: bool = False,
    ) -> None:
        self.progress = Progress()
        self._job = job
        self._recipe = job.recipe
        self._task = TASKS.get(job.recipe.task)
        self._steps = job.recipe.steps_per_epoch(data.samples)
        self._run = run
        self._accelerator = accelerator
        self._main = accelerator.is_main_process
        self._tracker: Tracker | None = None
        model = choose_kernels(setup.model, job, run, accelerator)
        self._setup = setup = dataclasses.replace(setup, model=model)
        self._sparsifier = setup.sparsifier
        interval = None if job.spectra is None else Interval.parse(job.spectra)
        self._observer = Observer(model, setup.sparsifier, interval, self._steps)
        self._data = data.to(accelerator.device)
        self._checkpoint = Checkpoint(
            model=model,
            optimizer=setup.optimizer,
            sparsifier=setup.sparsifier,
            observer=self._observer,
            data=self._data,
            progress=self.progress,
            scaler=accelerator.scaler,
            sharded=setup.sharded,
        )
        require("accelerate.utils", "train").set_seed(job.seed)
        self.resumed = self.load()
        self._sparsifier.check_workers()
        self.model = prepare(model, accelerator, sharded=setup.sharded)
        self.optimizer = accelerator.prepare_optimizer(setup.optimizer)
        self._display = self._build_display(quiet=quiet or not self._main)

    def fit(self, last_epoch: int) -> dict[str, Any]:
        """Train until `last_epoch` epochs are complete, and return the summary.

        Raises:
            IsoflopError: The loss is no longer finite.
        """
        with contextlib.ExitStack() as stack:
            if self._main:
                self._run.cut(self.progress.step if self.resumed else -1)
                self._tracker = stack.enter_context(Tracker(self._run, self.progress.step))
            stack.enter_context(self._display.shown())
            if not self.resumed:
                self._observer.start(self._tracker)
            while self.progress.epoch < last_epoch:
                start = time.perf_counter()
                apart = self._observer.spectra_seconds
                loss = self.train_epoch()
                self.evaluate()
                self.progress.epoch += 1
                apart = self._observer.spectra_seconds - apart
                self.progress.seconds += time.perf_counter() - start - apart
                self.save(loss)
        summary = self.summary()
        if self._main and self.progress.epoch == self._recipe.epochs:
            write_json(self._run.summary_path, summary)
        return summary

    def train_epoch(self) -> float:
        """Train for one epoch and return the mean loss."""
        recipe, progress, accelerator = self._recipe, self.progress, self._accelerator
        total = torch.zeros(2, device=accelerator.device)
        self.model.train()
        seed_epoch(self._job.seed, progress.epoch, accelerator.process_index)
        batches = self._data.train_batches(
            recipe.batch_size,
            seed=self._job.seed,
            epoch=progress.epoch,
            drop_last=recipe.drop_last,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        for index, (inputs, targets) in enumerate(itertools.islice(batches, self._steps)):
            samples = recipe.samples_of_batch(index, self._data.samples)
            for part in self.train_step(inputs, targets, samples):
                total += part
            self._display.advance(samples)
            self._observer.after_step(self._tracker, progress.step, progress.training_flops)
        total = accelerator.reduce(total)
        mean = float(total[0] / total[1])
        if not math.isfinite(mean):
            raise IsoflopError(
                f"The training diverged in epoch {progress.epoch + 1}: the loss is {mean}. Lower the "
                "learning rate (--lr)."
            )
        return mean

    def train_step(self, inputs: Any, targets: Any, samples: int) -> list[Tensor]:
        """Take one optimizer step.

        Args:
            inputs: This process's share of the batch.
            targets: The targets of its loss.
            samples: Samples of the whole batch, over all processes.

        Returns:
            For each part of the share its summed loss and its number of samples, in one tensor.
        """
        accelerator, processes = self._accelerator, self._accelerator.num_processes
        rate = self._recipe.learning_rate(self.progress.step, self._steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        flops = 2 * self._sparsifier.step_macs()  # before the step, which may change the masks
        # As many parts on every process, also of a last batch that is smaller.
        least = min(self._job.accumulate, max(1, samples // processes))
        parts = list(micro_batches(inputs, targets, least))
        losses = []
        for number, (x, y) in enumerate(parts, 1):
            # Processes exchange their gradients once, when these are complete.
            last = number == len(parts)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self._task.loss(self._recipe, self.model(x), y)
                # Gradients are averaged over the processes, of which some may have a sample more.
                accelerator.backward(loss * (len(y) * processes / samples))
            losses.append(torch.stack([loss.detach() * len(y), loss.new_tensor(len(y))]))
        if self._recipe.clip_norm is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), self._recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.training_flops += flops * samples
        return losses

    def evaluate(self) -> None:
        """Measure the model on the test data and note the measures, and the best value so far."""
        average_statistics(self._setup.model, self._accelerator)
        progress, metric = self.progress, self._task.metric
        progress.measures = self._data.evaluate(self.model, self._accelerator)
        value = progress.measures[metric.name]
        progress.best = value if progress.best is None else metric.better(progress.best, value)

    def save(self, loss: float) -> None:
        """Write the metrics of the epoch just completed, and a checkpoint. All processes call this.

        Args:
            loss: Mean loss of the epoch.
        """
        progress = self.progress
        metrics = {
            "epoch": progress.epoch,
            "step": progress.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss,
            **{f"test_{name}": value for name, value in progress.measures.items()},
            "density": self._sparsifier.density(),
            "seconds": progress.seconds,
            "training_flops": progress.training_flops,
        }
        self._display.epoch(metrics)
        state = self._checkpoint.gather(keep=self._main)
        if self._tracker is not None:
            # The metrics come first: a line without checkpoint is cut on resume, but a line that
            # was never written could not be restored.
            self._tracker.log(metrics)
            save_checkpoint(self._run.path, progress.epoch, state)
            if self._data.skipped:
                write_lines(self._run.skipped_path, self._data.skipped)
            if self._sparsifier.plan is not None:
                self._sparsifier.plan.save(self._run.plan_path)
        self._accelerator.wait_for_everyone()

    def load(self) -> bool:
        """Go on from the latest checkpoint; return whether there is one."""
        state = load_checkpoint(self._run.path)
        if state is not None:
            self._checkpoint.restore(state)
        return state is not None

    def summary(self) -> dict[str, Any]:
        """Return what `summary.json` says of the run so far."""
        config, setup, progress = self._job.config(), self._setup, self.progress
        nnz, numel = count_weights(setup)
        macs, unmasked_macs = self._sparsifier.forward_macs()
        metric = self._task.metric.name
        return {
            **{key: config[key] for key in _OPTIONS},
            "recipe": self._recipe.name,
            "epochs": progress.epoch,
            "steps": progress.step,
            "metric": metric,
            **progress.measures,
            f"best_{metric}": progress.best,
            **self._data.facts(),
            "macs": macs,
            "dense_macs": setup.dense_macs,
            "unmasked_macs": unmasked_macs,
            "relative_gap": (macs - setup.dense_macs) / setup.dense_macs,
            "average_macs": self._sparsifier.average_macs(),
            "training_flops": progress.training_flops,
            "nnz": nnz,
            "numel": numel,
            "density": self._sparsifier.density(),
            **({} if setup.backbone is None else {"backbone": setup.backbone}),
            "seconds": progress.seconds,
            "device": str(self._accelerator.device),
            "processes": self._accelerator.num_processes,
            "sharded": setup.sharded,
            "mixed_precision": str(self._accelerator.mixed_precision),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                **{name: metadata.version(name) for name in ("accelerate", "isoflop")},
            },
            "spectra_seconds": self._observer.spectra_seconds,
            "skipped": len(self._data.skipped),
        }

    def _build_display(self, *, quiet: bool) -> Display:
        recipe, samples = self._recipe, self._data.samples
        seen = self._steps * recipe.batch_size
        if recipe.steps is None and recipe.tokens is None and samples is not None:
            seen = min(seen, samples)
        epochs, done = recipe.epochs, seen * self.progress.epoch
        return Display(epochs, seen * epochs, done, self._task.metric, quiet=quiet)
