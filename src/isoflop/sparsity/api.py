"""`sparsify`: from a model, an optimizer and a method to a sparsifier."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from isoflop.methods.base import METHODS, Method
from isoflop.patterns import Pattern
from isoflop.plan import Plan
from isoflop.registry import known_name, names_in
from isoflop.sparsity import arguments
from isoflop.sparsity.allocation import allocation_of
from isoflop.sparsity.averages import let_averages_follow
from isoflop.sparsity.budget_spec import BudgetSpec
from isoflop.sparsity.init_context import InitContext, ScoringData
from isoflop.sparsity.resolve import Budget, ResolvedBudget, check_budget
from isoflop.sparsity.sparsifier import Sparsifier
from isoflop.sparsity.trajectory import plan_trajectory
from isoflop.sparsity.weights.compressed import CompressedStorage
from isoflop.sparsity.weights.compressible import check_compressible
from isoflop.sparsity.weights.masked import MaskedStorage, TrainedStorage
from isoflop.surgery import check_module


def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method | str,
    budget: Budget,
    *,
    total_steps: int,
    pattern: Pattern | str = "unstructured",
    storage: Literal["masked", "compressed"] = "masked",
    exclude: str | Iterable[str] = (),
    scoring: ScoringData | None = None,
    seed: int = 0,
) -> Sparsifier:
    """Mask the weights of `model` and keep them masked through every step of `optimizer`.

    The training loop stays as it is. Hooks on the optimizer mask gradients before each step, and
    weights and optimizer state after it; they change the masks when the method says so. In compressed
    storage, layers and parameters are replaced and nothing needs masking.

    Args:
        model: The model; its weights are masked, or its layers replaced, in place. Wrap it in
            `DistributedDataParallel` or `torch.compile` afterwards.
        optimizer: The optimizer that trains it.
        method: A method such as ``RigL(alpha=0.3)``, or a registered name such as ``"rigl"``.
        budget: How many weights stay, and which may. A plan, as `isoflop.transform` or
            `isoflop.plain_plan` returned it; or the plain sparsity, in [0, 1), of all linear and
            convolution layers but the first and the last; or masks to begin with, boolean and shaped
            like the weights, by parameter name, with all other weights dense. Methods that rank the
            weights of all layers together spread those of a plan anew, at its FLOPs. Methods that prune
            during training meet the FLOPs of a transform's plan on average over all steps, and a
            plain sparsity in the end. Masks are for methods that would begin with random ones; with
            `isoflop.Static` they never change. Dense training has none of it: pass 0.0, or the plan.
        total_steps: Optimizer steps of the whole training run, which the method's schedule spans.
        pattern: Which weights may be non-zero together; a pattern, a registered name, or a text
            such as ``"2:4"``, ``"4:8-T"`` or ``"4x1"`` (see `isoflop.sparsity.parse_pattern`). N:M
            patterns fix the number of non-zeros themselves, which must be near the one asked for.
        storage: ``"masked"`` stores dense weights with masks, for every device and method;
            ``"compressed"`` stores the non-zeros only, with gradients and optimizer state of their
            number, in linear layers and two-dimensional convolutions on the CPU.
        exclude: With a plain sparsity: patterns of module paths, such as ``"blocks.*.proj"``, that stay
            dense with everything inside them; or one pattern. A plan has its own.
        scoring: What methods need that score weights before training. Its example inputs also
            count the MACs where the budget is no plan.
        seed: Seed of all randomness of the sparsifier, which the global generators do not touch.

    Returns:
        The sparsifier. Keep it to save its state; training works without.

    Raises:
        IsoflopError: An argument is wrong. Nothing has been changed then.
    """
    check_module(model)
    method = arguments.find_instance(METHODS, Method, method)
    pattern = arguments.find_pattern(pattern)
    storage = known_name(storage, ("masked", "compressed"), "storage")
    arguments.check_total_steps(total_steps)
    arguments.check_integer("seed", seed, "what the sparsifier's generator starts from")
    arguments.check_optimizer(optimizer)
    arguments.check_unmasked(model, budget if isinstance(budget, Mapping) else None)
    exclude = names_in(exclude, "exclude")
    check_budget(method, budget, exclude)
    scoring = arguments.check_scoring(method, scoring)
    inputs = None if isinstance(budget, Plan) else scoring.example_inputs
    arguments.check_whole(model, method, traced=inputs is not None)

    resolved = ResolvedBudget.of(budget, model, method, inputs, exclude)
    targets, plan, masks = resolved.targets, resolved.plan, resolved.masks
    arguments.check_trained(targets, optimizer)
    if storage == "compressed":
        check_compressible(model, targets, optimizer, method, pattern, total_steps)
    else:
        arguments.check_mask_names(targets)
    budget_spec = BudgetSpec(tuple(targets), tuple(resolved.prices), pattern)
    counts = budget_spec.feasible([target.nnz for target in targets])
    arguments.check_pattern(budget_spec, counts, plan)
    if masks is not None:
        arguments.check_masks(masks, pattern)
    trajectory = None
    if method.pruning_schedule is not None:
        trajectory = plan_trajectory(
            method.pruning_schedule,
            budget_spec,
            counts,
            allocation_of(plan),
            total_steps,
            on_average=plan.is_transformed,
        )
        counts = trajectory.initial

    generator = torch.Generator().manual_seed(seed)
    context = InitContext(
        model=model,
        budget_spec=budget_spec,
        counts=counts,
        generator=generator,
        scoring=scoring,
    )
    if masks is None:
        first = method.initial_masks(context) if targets else []
    else:
        first = [masks[name] for name in budget_spec.names]
    counts = [int(mask.sum()) for mask in first]
    arguments.check_effect(method, counts, total_steps)
    if storage == "compressed":
        stored = CompressedStorage(targets, optimizer, pattern)
    elif method.keeps_dense_weights:
        stored = TrainedStorage(targets, optimizer, method.masked_decay)
    else:
        stored = MaskedStorage(targets, optimizer)
    stored.begin(first)
    let_averages_follow()
    budget_spec = dataclasses.replace(budget_spec, targets=stored.targets)
    if trajectory is not None:
        trajectory = dataclasses.replace(trajectory, budget_spec=budget_spec)
    counted = plan if plan.is_counted else None
    return Sparsifier(
        budget_spec, counts, optimizer, stored, method, generator, total_steps, counted, trajectory
    )
