"""What the training loop needs to know of a task, and nothing more."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from isoflop.lab.metrics import Metric
from isoflop.lab.recipes.base import Recipe
from isoflop.registry import Registry
from isoflop.surgery import ExampleInputs


class TaskData(Protocol):
    """The data of a task, loaded."""

    @property
    def samples(self) -> int | None:
        """Number of training samples; None for a stream without a known end."""
        ...

    @property
    def skipped(self) -> Sequence[Mapping[str, str]]:
        """Samples that could not be read and were left out or replaced: `split`, `file`, `reason`.

        After `evaluate` the same on all processes.
        """
        ...

    def to(self, device: torch.device) -> "TaskData":
        """Return the data such that their batches come on `device`."""
        ...

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[tuple[Any, Any]]:
        """Iterate over the batches of an epoch: inputs of the model and targets of the loss.

        The batches depend on nothing but the arguments and, for streams, on the state. Together the
        processes get the same samples whatever their number; no process gets none of a batch that
        has as many samples as there are processes.

        Args:
            batch_size: Samples of a batch over all processes.
            seed: Seed of the run.
            epoch: Number of the epoch, which changes order and augmentation.
            drop_last: Leave out a last batch that is smaller.
            rank: Number of this process, which gets its share of every batch.
            world_size: Number of processes.
        """
        ...

    def evaluate(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Return the measures of a model on the test data, the same on all processes.

        Every process runs the model equally often, as all take part in gathering a sharded one.

        Args:
            model: The model, which is put into evaluation mode.
            accelerator: The Accelerate object of the run, which joins the processes' counts.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return what a summary says of the data, such as what identifies them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return where a stream stands after the epochs so far; empty where epochs tell all."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        ...


class Task(Protocol):
    """What a recipe trains a model for."""

    metric: Metric
    """The measure that heads the results."""

    def build_model(self, recipe: Recipe) -> nn.Module:
        """Return the recipe's own dense model, freshly initialised."""
        ...

    def example_inputs(self, recipe: Recipe) -> ExampleInputs:
        """Return example inputs, or the shape, of one sample with a batch dimension in front."""
        ...

    def load(
        self, recipe: Recipe, folder: str | Path | None, workers: int | None = None
    ) -> TaskData:
        """Load the recipe's data from a folder. Nothing is ever downloaded.

        Args:
            recipe: The recipe.
            folder: Where the data are.
            workers: Processes that read samples, for data that stay in files; None for as many as
                are useful. Does not change the batches.

        Raises:
            DataError: They are missing or damaged, or do not fit the recipe.
        """
        ...

    def loss(self, recipe: Recipe, outputs: Any, targets: Any) -> Tensor:
        """Return the mean loss of a batch."""
        ...


@runtime_checkable
class TransferTask(Task, Protocol):
    """A task whose models can begin with the layers of a trained classifier."""

    def build_on(self, recipe: Recipe, classifier: nn.Module) -> nn.Module:
        """Return the recipe's model on the layers of a classifier, which are used themselves.

        Raises:
            IsoflopError: The classifier is of no kind that can be used so.
        """
        ...


TASKS: Registry[Task] = Registry("task")
"""Tasks by the names that recipes give."""
