"""Where the numbers of a table come from: a run of some kind, a computation, or nothing."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from isoflop.errors import IsoflopError
from isoflop.lab.recipes import Recipe, get_recipe
from isoflop.lab.recipes.base import METHOD_OPTIONS
from isoflop.lab.report.figure import is_finite
from isoflop.lab.reproduce.data import DataFolders
from isoflop.lab.reproduce.work import EvaluationWork, RunWork, TimingWork
from isoflop.lab.training import build_method
from isoflop.lab.training.configs import method_options
from isoflop.lab.training.setup import Job
from isoflop.model_registry import MODELS
from isoflop.patterns import parse_pattern
from isoflop.sparsity.weights.compressible import trains_compressed
from isoflop.transforms import Transform


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training, without its seed.

    Attributes:
        recipe: Name of the recipe, which is looked up when the training is to be done.
        changes: Values in place of the recipe's, as for `Recipe.replace`.
        stretch: By what to multiply the number of epochs.
        transform: The transform, or None for the recipe's own model.
        method: Name of the training method.
        options: Options of the method.
        sparsity: Sparsity of plain sparse training, that is, without a transform.
        pattern: Which weights may be non-zero together.
        storage: How sparse weights are stored, where the method can train them so.
        spectra: How often the spectra of the masks are measured.
        backbone: The training whose model is transferred; its masks stay as they are.
        measure: Key of the result in the summary; None for the measure that heads it.
        deviation: In what the training is not the paper's; empty where it is.
    """

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    stretch: float = 1.0
    transform: Transform | None = None
    method: str = "dense"
    options: Mapping[str, Any] = field(default_factory=dict)
    sparsity: float | None = None
    pattern: str = "unstructured"
    storage: Literal["masked", "compressed"] = "masked"
    spectra: str | None = None
    backbone: "Training | None" = None
    measure: str | None = None
    deviation: str = ""

    def work(self, seed: int, data: DataFolders) -> RunWork:
        """Return the run with a seed.

        Raises:
            UnknownNameError: There is no such recipe.
            IsoflopError: An option is invalid.
        """
        recipe = self._recipe()
        method = build_method(self.method, recipe, **self.options)
        compresses = trains_compressed(method, parse_pattern(self.pattern))
        job = Job(
            recipe=recipe,
            transform=self.transform,
            method=method,
            sparsity=self.sparsity,
            allocation="uniform",
            pattern=self.pattern,
            storage=self.storage if compresses else "masked",
            scope=recipe.scope,
            seed=seed,
            data=data.of(recipe.dataset),
            spectra=self.spectra,
        )
        job.check()
        backbone = None if self.backbone is None else self.backbone.work(seed, data)
        return RunWork(job=job, backbone=backbone)

    def read(self, summary: Mapping[str, Any]) -> float:
        """Return the result from the summary of a run."""
        measure = self.measure or summary.get("metric", "accuracy")
        if measure not in summary:
            raise IsoflopError(f"The summary of the run has no {measure!r}.")
        value = summary[measure]
        if not is_finite(value):  # null in the file
            raise IsoflopError(f"The {measure} of the run is not finite.")
        return float(value)

    def _recipe(self) -> Recipe:
        recipe, changes = get_recipe(self.recipe), dict(self.changes)
        if recipe.tokens is None:
            changes.pop("tokens", None)
        # What is changed for all trainings of a table concerns the methods that have it.
        for key in set(METHOD_OPTIONS) - set(method_options(self.method)):
            changes.pop(key, None)
        recipe = recipe.replace(**changes)
        if not _takes_base_width(recipe.model):
            recipe = dataclasses.replace(recipe, base_width=None)
        if self.stretch != 1.0:
            recipe = recipe.replace(epochs=round(self.stretch * recipe.epochs))
        return recipe


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A measure of lm-eval of a trained language model.

    Attributes:
        training: The training.
        measure: Name of a task of the Open LLM leaderboard, or ``"leaderboard_mean"``.
    """

    training: Training
    measure: str

    @property
    def deviation(self) -> str:
        """In what the training is not the paper's."""
        return self.training.deviation

    def work(self, seed: int, data: DataFolders) -> EvaluationWork:
        """Return the evaluation of the run with a seed."""
        return EvaluationWork(training=self.training.work(seed, data))

    def read(self, found: Mapping[str, Any]) -> float:
        """Return the measure, in percent, from the results."""
        if self.measure == "leaderboard_mean":
            return float(found["leaderboard_mean"])
        return float(found["tasks"][self.measure]["score"])


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A time that `isoflop bench` measures.

    Attributes:
        arguments: Arguments of the command, without sparsities.
        sparsities: All sparsities that are measured together.
        sparsity: That of this number.
        contestant: Whose time it is.
        quantity: The time relative to the dense model, or the speed-up over computing the zeros.
        deviation: In what the work is not the paper's; empty where it is.
    """

    arguments: tuple[str, ...]
    sparsities: tuple[float, ...]
    sparsity: float
    contestant: str
    quantity: Literal["relative time", "speed-up"]
    deviation: str = ""

    def work(self, seed: int, data: DataFolders) -> TimingWork:
        """Return the call of the command; there is one, whatever the seed."""
        del seed, data
        return TimingWork(arguments=self.arguments, sparsities=self.sparsities)

    def read(self, results: Sequence[Mapping[str, Any]]) -> float:
        """Return the number from the results of the command."""
        (result,) = (r for r in results if r["workload"]["sparsity"] == self.sparsity)
        seconds = result["seconds"]
        if self.contestant not in seconds:
            reason = {**result.get("skipped", {}), **result.get("failed", {})}.get(self.contestant)
            raise IsoflopError(f"{self.contestant} was not measured: {reason or 'not installed'}.")
        if self.quantity == "relative time":
            return float(result["ratio_to_dense"][self.contestant])
        return float(seconds["masked"] / seconds[self.contestant])


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A number that needs no run.

    Attributes:
        value: Returns it.
    """

    value: Callable[[], float]
    deviation: str = ""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A number that only the paper has.

    Attributes:
        reason: Why.
    """

    reason: str
    deviation: str = ""


Source = Training | Evaluation | Timing | Computed | Missing


def _takes_base_width(model: str) -> bool:
    source, _, name = model.partition(":")
    if source != "isoflop":
        return False
    return "base_width" in inspect.signature(MODELS.get(name).build).parameters
