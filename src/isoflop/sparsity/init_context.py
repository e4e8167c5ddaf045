"""What a method is given to choose the initial masks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.sparsity.budget_spec import BudgetSpec
from isoflop.sparsity.weights.sharding import full_tensor
from isoflop.surgery import ExampleInputs

Batches = Iterable[tuple[Any, Any]]
"""Pairs of inputs, as `model(inputs)` takes them, and targets, as the loss takes them."""

Loss = Callable[[Any, Any], Tensor]
"""Maps outputs and targets to a scalar."""


@dataclass(frozen=True, kw_only=True)
class ScoringData:
    """What methods need that score weights before training.

    Attributes:
        batches: Pairs of inputs and targets of the training data, such as a data loader; the method
            uses the first few.
        loss: Maps outputs and targets to a scalar, such as `F.cross_entropy`.
        example_inputs: Inputs that the model takes, see `isoflop.profile`. SynFlow runs the model on
            ones of their shapes; and without a plan, they count the MACs and tell the first and the
            last layer.
    """

    batches: Batches | None = None
    loss: Loss | None = None
    example_inputs: ExampleInputs | None = None


@dataclass(frozen=True, kw_only=True)
class InitContext:
    """A model before it is masked. Methods read it; none changes it.

    Attributes:
        model: The model.
        budget_spec: The weights to be masked.
        counts: How many non-zeros each of them gets, if the method has no wish of its own.
        generator: CPU generator for every random choice.
        scoring: The data for scoring that were passed to `sparsify`; checked to hold what the
            method `needs`.
    """

    model: nn.Module
    budget_spec: BudgetSpec
    counts: Sequence[int]
    generator: torch.Generator
    scoring: ScoringData = ScoringData()

    def weights(self) -> Iterator[Tensor]:
        """Iterate over the weights to be masked, each as a whole."""
        for name in self.budget_spec.names:
            yield full_tensor(self.model.get_parameter(name).detach())

    def random(self, counts: Sequence[int]) -> list[Tensor]:
        """Return random masks of these counts."""
        pattern, shapes = self.budget_spec.pattern, self.budget_spec.shapes
        return [pattern.random(s, n, self.generator) for s, n in zip(shapes, counts, strict=True)]
