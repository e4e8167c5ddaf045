"""From the options of a run to the things that it trains, before anything is written."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError
from isoflop.flops.trace import profile
from isoflop.lab.recipes.base import Recipe
from isoflop.lab.tasks import TASKS
from isoflop.lab.training.backbone import Backbone
from isoflop.lab.training.configs import check_options
from isoflop.lab.training.interval import Interval
from isoflop.lab.training.memory_format import use_fast_layout
from isoflop.lab.training.sharding import shard
from isoflop.masks import named_masks, remove_mask
from isoflop.methods.base import METHODS, Method
from isoflop.optional import require
from isoflop.patterns import parse_pattern
from isoflop.plan import Plan
from isoflop.sparsity.allocation import reallocate
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.init_context import Batches, ScoringData
from isoflop.sparsity.plain import plain_plan
from isoflop.sparsity.sparsifier import Sparsifier
from isoflop.surgery import ExampleInputs
from isoflop.transforms import TRANSFORMS, Transform
from isoflop.transforms import transform as apply_transform


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train; see `isoflop.lab.training.train`."""

    recipe: Recipe
    transform: Transform | None
    method: Method
    sparsity: float | None
    allocation: str
    pattern: str
    storage: Literal["masked", "compressed"]
    scope: Literal["model", "layers"]
    seed: int
    data: str | None
    accumulate: int = 1
    spectra: str | None = None
    backbone: Backbone | None = None

    def check(self) -> None:
        """Raise `IsoflopError` if the options contradict each other."""
        dense = not self.method.masks_weights
        self.recipe.check_given()
        check_options(self.method, self.recipe)
        if dense and (self.pattern, self.allocation) != ("unstructured", "uniform"):
            raise IsoflopError(
                "Dense training has no masks, so a pattern or an allocation has no effect. Leave out "
                "--pattern and --allocation, or choose a sparse method, such as --method rigl."
            )
        if self.backbone is not None and self.allocation != "uniform":
            raise IsoflopError(
                "The masks of a backbone stay as they are, so an allocation has no effect. Leave out "
                "--allocation."
            )
        if self.backbone is not None and (self.transform is not None or self.sparsity is not None):
            raise IsoflopError(
                "A backbone is transformed and sparse already, or neither: leave out --transform and "
                "--sparsity, and give them when training the classifier."
            )
        if self.transform is not None and self.sparsity is not None:
            raise IsoflopError(
                "With a transform the sparsity belongs to the transform, such as "
                "SparseWide(sparsity=0.75); leave out `sparsity`."
            )
        if self.transform is None and dense and self.sparsity is not None:
            raise IsoflopError(
                "Dense training has no sparsity. Choose a sparse method, such as --method rigl, or "
                "leave out --sparsity."
            )
        untransformed = self.transform is None and self.backbone is None
        if untransformed and not dense and self.sparsity is None:
            raise IsoflopError(
                f"The method {self.method.name!r} needs a sparsity: give --sparsity 0.9, or a "
                "transform with its own, such as --transform wide --sparsity 0.75."
            )
        parse_pattern(self.pattern)
        if self.spectra is not None:
            Interval.parse(self.spectra)
            if dense:
                raise IsoflopError(
                    "A dense model has no masks, so it has no spectra. Leave out --spectra, or choose "
                    "a sparse method, such as --method rigl."
                )
        if self.accumulate < 1:
            raise IsoflopError(f"accumulate must be at least 1, not {self.accumulate}.")
        if self.seed < 0:
            raise IsoflopError(f"The seed must not be negative, not {self.seed}.")

    def config(self) -> dict[str, Any]:
        """Return all options as plain data, for `config.json`."""
        transform = self.transform
        return {
            "recipe": {k: v for k, v in dataclasses.asdict(self.recipe).items() if k != "given"},
            "transform": None if transform is None else TRANSFORMS.name_of(transform),
            "transform_config": None if transform is None else transform.to_dict(),
            "scope": self.scope,
            "method": METHODS.name_of(self.method),
            "method_config": self.method.config,
            "sparsity": self.sparsity if transform is None else transform.sparsity,
            "allocation": self.allocation,
            "pattern": self.pattern,
            "storage": self.storage,
            "seed": self.seed,
            "data": self.data,
            "accumulate": self.accumulate,
            "spectra": self.spectra,
            "backbone": None if self.backbone is None else self.backbone.config,
            "backbone_run": None if self.backbone is None else self.backbone.origin,
        }


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is trained.

    Attributes:
        model: The model.
        optimizer: Its optimizer.
        sparsifier: What keeps it sparse.
        dense_macs: MACs of one forward pass of the dense model on one sample.
        sharded: Whether all of this is spread over several processes.
        backbone: What the trained backbone costs and what it is; None if there is none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sparsifier: Sparsifier
    dense_macs: int
    sharded: bool
    backbone: dict[str, Any] | None = None


def build(
    job: Job,
    steps: int,
    device: torch.device,
    scoring_batches: Batches,
    *,
    sharded: bool = False,
    bf16: bool = False,
) -> Setup:
    """Build, transform and sparsify the model.

    Args:
        job: What to train.
        steps: Optimizer steps of the whole run.
        device: Where to train.
        scoring_batches: Batches of the training data, for methods that score weights by them.
        sharded: Whether to spread the model over all processes.
        bf16: Whether a sharded model is gathered in bfloat16.
    """
    recipe = job.recipe
    task = TASKS.get(recipe.task)
    inputs = task.example_inputs(recipe)
    require("accelerate.utils", "train").set_seed(job.seed)
    model = task.build_model(recipe) if job.backbone is None else job.backbone.network(recipe)
    plan: Plan | None = None
    costs = masks = None
    if job.backbone is not None:
        costs = job.backbone.costs(recipe, model)
        dense_macs = costs.pop("dense_network_macs")
        masks = _take_masks(model)
    elif job.transform is None:
        dense_macs = profile(model, inputs).macs
    else:
        model, plan = apply_transform(
            model, job.transform, example_inputs=inputs, scope=job.scope, seed=job.seed
        )
        dense_macs = plan.dense_macs
    # A model to be sharded moves part by part, later, and FSDP2 takes contiguous parameters only.
    if not sharded:
        model.to(device)
    optimizer = _optimizer(model, recipe)
    scoring = ScoringData(
        batches=scoring_batches, loss=functools.partial(task.loss, recipe), example_inputs=inputs
    )
    sparsifier = sparsify(
        model,
        optimizer,
        job.method,
        masks or _planned(job, model, plan, inputs),
        pattern=job.pattern,
        storage=job.storage,
        total_steps=steps,
        scoring=scoring,
        seed=job.seed,
    )
    if sharded:
        shard(model, optimizer, sparsifier, device, bf16=bf16)
    else:
        use_fast_layout(model)
    return Setup(
        model=model,
        optimizer=optimizer,
        sparsifier=sparsifier,
        dense_macs=dense_macs,
        sharded=sharded,
        backbone=costs,
    )


def _planned(job: Job, model: nn.Module, plan: Plan | None, inputs: ExampleInputs) -> Plan | float:
    """Return the plan of the run; for dense training without a transform, no sparsity."""
    if plan is not None:
        return plan if job.allocation == "uniform" else reallocate(plan, job.allocation)
    if job.sparsity is None:
        return 0.0
    return plain_plan(model, job.sparsity, example_inputs=inputs, allocation=job.allocation)


def _take_masks(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of a model by parameter name, and leave it without."""
    found = list(named_masks(model))
    for _, module, parameter, _ in found:
        remove_mask(module, parameter)
    return {name: mask for name, _, _, mask in found}


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    groups = _parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    weights = [p for p in model.parameters() if p.ndim > 1 or recipe.decay_norm_and_bias]
    others = [p for p in model.parameters() if not (p.ndim > 1 or recipe.decay_norm_and_bias)]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def count_weights(setup: Setup) -> tuple[int, int]:
    """Return how many weights may be non-zero and how many there are; no biases, no norms."""
    sparsifier = setup.sparsifier
    sizes = sparsifier.sizes
    dense = sum(
        parameter.numel()
        for name, parameter in setup.model.named_parameters()
        if parameter.ndim > 1 and name not in sizes
    )
    return dense + sum(sparsifier.nnz.values()), dense + sum(sizes.values())
