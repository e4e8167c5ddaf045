"""Which kernels a training with compressed storage runs on."""

import functools
from typing import Any

from torch import Tensor, nn

from isoflop.files import read_json, write_json
from isoflop.kernels import SparseLayer, accelerate_, available
from isoflop.lab.tasks import TASKS
from isoflop.lab.training.run_directory import RunDirectory
from isoflop.lab.training.setup import Job
from isoflop.surgery import ExampleInputs


def choose_kernels(model: nn.Module, job: Job, run: RunDirectory, accelerator: Any) -> nn.Module:
    """Run each compressed layer on what is fastest for it, see `isoflop.accelerate`.

    What was chosen when the run began stays until its end, so that a resumed run gives the same bits.
    All processes run on what the first one chooses. With methods that prune while they train, all
    layers run on the sparse kernels: what is fastest at first is not in the end.

    Args:
        model: The model, before it is wrapped for several processes.
        job: What is trained.
        run: The run directory, which is claimed.
        accelerator: Accelerate's.

    Returns:
        The model.
    """
    compressed = [n for n, module in model.named_modules() if isinstance(module, SparseLayer)]
    if not (compressed and accelerator.device.type == "cpu" and available()):
        return model
    recipe = job.recipe
    parts = accelerator.num_processes * job.accumulate
    inputs = _batch(
        TASKS.get(recipe.task).example_inputs(recipe), max(1, recipe.batch_size // parts)
    )
    speed_up = functools.partial(accelerate_, example_inputs=inputs)
    chosen = None
    with accelerator.autocast():
        if accelerator.is_main_process and not run.kernels_path.exists():
            pruned = job.method.pruning_schedule is not None
            report = speed_up(
                model, choices=dict.fromkeys(compressed, "sparse") if pruned else None
            )
            chosen = report.choices
            write_json(run.kernels_path, chosen)
        accelerator.wait_for_everyone()
        if chosen is None:
            speed_up(model, choices=read_json(run.kernels_path))
    return model


def _batch(inputs: ExampleInputs, size: int) -> ExampleInputs:
    """Return example inputs of one sample as a batch."""
    if isinstance(inputs, Tensor):
        return inputs.expand(size, *inputs.shape[1:])
    return (size, *inputs[1:])
