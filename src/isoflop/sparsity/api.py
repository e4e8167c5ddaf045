"""`sparsify`: from a model, an optimizer and a method to a sparsifier."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from isoflop.methods.base import METHODS, Method
from isoflop.patterns import Pattern
from isoflop.plan import Plan
from isoflop.registry import known_name, names_in
from isoflop.sparsity import arguments
from isoflop.sparsity.allocation import Allocation
from isoflop.sparsity.averages import let_averages_follow
from isoflop.sparsity.budget_spec import BudgetSpec, whole_prices
from isoflop.sparsity.init_context import Batches, InitContext, Loss
from isoflop.sparsity.sparsifier import Sparsifier
from isoflop.sparsity.targets import from_masks, from_plan, from_sparsity, plain_plan
from isoflop.sparsity.trajectory import plan_trajectory
from isoflop.sparsity.weights.compressed import CompressedWeights
from isoflop.sparsity.weights.compressible import check_compressible
from isoflop.sparsity.weights.masked import MaskedWeights, TrainedWeights
from isoflop.surgery import ExampleInputs, check_module


def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method | str,
    *,
    plan: Plan | None = None,
    sparsity: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
    allocation: Allocation | str | None = None,
    pattern: Pattern | str = "unstructured",
    storage: Literal["masked", "compressed"] = "masked",
    total_steps: int,
    dense_ends: bool = True,
    example_inputs: ExampleInputs | None = None,
    exclude: str | Sequence[str] = (),
    calibration: Batches | None = None,
    loss: Loss | None = None,
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
        plan: The plan that `isoflop.transform` returned with the model; says which weights are
            masked and how many non-zeros each keeps. Methods that rank the weights of all layers
            together spread them anew, at the plan's FLOPs; methods that prune during training
            meet the plan's FLOPs on average over all steps.
        sparsity: Without a plan: the fraction of the maskable weights that is zero, in [0, 1); in
            the end, for methods that prune during training.
        masks: In place of a plan or a sparsity: the masks to begin with, boolean and shaped like the
            weights, by parameter name; all other weights stay dense. For methods that would begin with
            random masks; with `isoflop.Static` these masks never change.
        allocation: How sparsity is spread over the layers; a registered name or a function. By
            default that of the plan, or uniform. Another one than the plan's is solved anew for
            the plan's FLOPs.
        pattern: Which weights may be non-zero together; a pattern, a registered name, or a text
            such as ``"2:4"``, ``"4:8-T"`` or ``"4x1"`` (see `isoflop.sparsity.parse_pattern`). N:M
            patterns fix the number of non-zeros themselves, which must be near the one asked for.
        storage: ``"masked"`` stores dense weights with masks, for every device and method;
            ``"compressed"`` stores the non-zeros only, with gradients and optimizer state of their
            number, in linear layers and two-dimensional convolutions on the CPU.
        total_steps: Optimizer steps of the whole training run, which the method's schedule spans.
        dense_ends: Without a plan: leave the first and the last layer dense.
        example_inputs: Without a plan: inputs by which the first and the last layer are found in
            the flow of the data (by default the order of definition tells), and FLOPs are counted.
            SynFlow runs the model on ones of their shapes.
        exclude: Without a plan: globs over module paths, such as ``"blocks.*.proj"``, that stay
            dense with everything inside them.
        calibration: For methods that score weights by data: batches ``(inputs, targets)`` of the
            training data, such as a data loader; the method uses the first few.
        loss: For the same methods: maps outputs and targets to a scalar, such as
            `F.cross_entropy`.
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
    arguments.check_unmasked(model, masks)
    exclude = names_in(exclude, "exclude")
    arguments.check_budget(method, plan, sparsity, masks, exclude)
    arguments.check_used(method, plan, masks, allocation, dense_ends=dense_ends)
    arguments.check_needs(method, calibration=calibration, loss=loss, example_inputs=example_inputs)
    arguments.check_whole(model, method, traced=plan is None and example_inputs is not None)

    budget = plan
    if budget is not None:
        budget.check(model)
        budget = arguments.with_allocation(budget, allocation)
    spread = arguments.find_allocation(arguments.default_allocation(allocation, budget))
    targets = []
    if method.masks_weights and budget is not None:
        targets = from_plan(model, budget)
    elif masks is not None:
        targets = from_masks(model, masks)
    elif method.masks_weights:
        assert sparsity is not None
        targets = from_sparsity(
            model,
            sparsity,
            spread,
            dense_ends=dense_ends,
            example_inputs=example_inputs,
            exclude=exclude,
        )
    arguments.check_trained(targets, optimizer)
    prices = [1] * len(targets)
    if budget is not None and targets:
        prices = whole_prices([layer.macs_per_weight for layer in budget.sparse_layers])
    elif budget is None and example_inputs is not None:
        budget = plain_plan(model, example_inputs, targets)
    if storage == "compressed":
        check_compressible(model, targets, optimizer, method, pattern, total_steps)
    else:
        arguments.check_mask_names(targets)
    budget_spec = BudgetSpec(tuple(targets), tuple(prices), pattern)
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
            spread,
            total_steps,
            on_average=plan is not None,
        )
        counts = trajectory.initial

    generator = torch.Generator().manual_seed(seed)
    context = InitContext(
        model=model,
        budget_spec=budget_spec,
        counts=counts,
        generator=generator,
        calibration=calibration,
        loss=loss,
        example_inputs=example_inputs,
    )
    if masks is None:
        first = method.initial_masks(context) if targets else []
    else:
        first = [masks[name] for name in budget_spec.names]
    counts = [int(mask.sum()) for mask in first]
    arguments.check_effect(method, counts, total_steps)
    if storage == "compressed":
        stored = CompressedWeights(targets, optimizer, pattern)
    elif method.keeps_dense_weights:
        stored = TrainedWeights(targets, optimizer, method.masked_decay)
    else:
        stored = MaskedWeights(targets, optimizer)
    stored.begin(first)
    let_averages_follow()
    budget_spec = dataclasses.replace(budget_spec, targets=stored.targets)
    if trajectory is not None:
        trajectory = dataclasses.replace(trajectory, budget_spec=budget_spec)
    return Sparsifier(
        budget_spec, counts, optimizer, stored, method, generator, total_steps, budget, trajectory
    )
