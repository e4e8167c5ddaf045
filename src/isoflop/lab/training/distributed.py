"""What the training loop needs when several processes train one model."""

import atexit
import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from isoflop.errors import IsoflopError
from isoflop.lab.recipes.base import Recipe
from isoflop.optional import require

_PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU")
"""Accelerate's kinds of distributed training that leave the model's own parameters in place."""


def build_accelerator(mixed_precision: str | None, *, shard: bool) -> Any:
    """Return the Accelerate object of the processes that `torchrun` or `accelerate launch` started.

    Args:
        mixed_precision: Type of the arithmetic; None for what Accelerate is configured for.
        shard: Whether the model will be sharded.

    Raises:
        IsoflopError: Accelerate is configured for something that does not go together with masks.
    """
    accelerate = require("accelerate", "train")
    # An earlier run in this process may have computed in another precision, which Accelerate keeps.
    require("accelerate.state", "train").AcceleratorState._reset_state()
    # Left to itself, Accelerate takes processes without an accelerator for unrelated ones.
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    connected = _is_connected()
    accelerator = accelerate.Accelerator(
        cpu=launched and not torch.accelerator.is_available(),
        mixed_precision=mixed_precision,
    )
    if _is_connected() and not connected:
        # Its threads would outlive what they use, and now and then abort a process that has ended well.
        atexit.register(_disconnect)
    kind = accelerator.distributed_type.value
    if kind not in _PLAIN:
        raise IsoflopError(
            f"Accelerate is configured for {kind}, which would replace the parameters that are masked. "
            "Launch plain processes (`accelerate launch --multi_gpu`, or torchrun); to shard the "
            "model, add --shard to `isoflop train`."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise IsoflopError(
            "Accelerate is configured to accumulate gradients, which a recipe does not: its batch size "
            "is that of a step. Set gradient_accumulation_steps to 1."
        )
    if shard and accelerator.num_processes == 1:
        raise IsoflopError(
            "There is one process only, so there is nothing to shard the model over. Launch several, "
            "such as `torchrun --nproc-per-node 8 -m isoflop.lab.cli train … --shard`."
        )
    if shard and accelerator.mixed_precision == "fp16":
        raise IsoflopError(
            "A sharded model cannot be trained in fp16, whose gradients need scaling. Use bf16."
        )
    return accelerator


def _is_connected() -> bool:
    return dist.is_available() and dist.is_initialized()


def _disconnect() -> None:
    """Destroy the process group, unless the user already has."""
    if _is_connected():
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Tell whether this process speaks for all: the first, or one that is alone."""
    return not _is_connected() or dist.get_rank() == 0


def check_batches(recipe: Recipe, samples: int | None, processes: int) -> None:
    """Raise if the batches of an epoch are not large enough for all processes.

    Args:
        recipe: The recipe.
        samples: Training samples of an epoch; None for a stream.
        processes: Number of processes.

    Raises:
        IsoflopError: A process would get no sample of some batch.
    """
    if samples is not None and samples < recipe.batch_size:
        raise IsoflopError(
            f"batch_size {recipe.batch_size} exceeds the {samples} training samples. Choose a "
            "smaller one."
        )
    if recipe.batch_size < processes:
        raise IsoflopError(
            f"batch_size {recipe.batch_size} is that of all {processes} processes together, and leaves "
            "some without a sample. Choose a larger one, or fewer processes."
        )
    last = 0 if samples is None or recipe.drop_last else samples % recipe.batch_size
    if 0 < last < processes:
        raise IsoflopError(
            f"The last of the {samples} samples make a batch of {last}, too few for {processes} "
            "processes. Choose another batch_size, or drop_last."
        )


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Give every process but the first random numbers of its own, for layers such as dropout.

    The first goes on with those of the epoch before, as a process does that is alone.
    """
    if process:
        sequence = np.random.SeedSequence([seed, epoch, process])
        torch.manual_seed(int(sequence.generate_state(1)[0]))


def prepare(model: nn.Module, accelerator: Any, *, sharded: bool) -> nn.Module:
    """Return the model as the loop calls it: in its precision, gradients averaged over processes.

    Args:
        model: The model.
        accelerator: The Accelerate object.
        sharded: Whether the model is sharded, and so averages gradients itself.
    """
    # DDP would send all buffers in each forward pass: masks, a quarter the size of the weights, which
    # all processes have anyway; and the statistics of norms, for which see `average_statistics`.
    buffers = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, buffers)
    # For evaluation Accelerate sees to the precision only; a sharded model needs no more.
    return accelerator.prepare_model(model, evaluation_mode=sharded)


@torch.no_grad()
def average_statistics(model: nn.Module, accelerator: Any) -> None:
    """Average the running statistics of BatchNorm over the processes.

    In training every process normalises by its own samples, so each has statistics of its own. With
    their mean, all evaluate the same model, and the checkpoint holds that.
    """
    if accelerator.num_processes == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None:
                    statistic.copy_(accelerator.reduce(statistic, reduction="mean"))
