"""What training costs, in exact integers: as a forecast, and as it goes."""

import itertools
import math
from collections.abc import Iterable

from isoflop.errors import IsoflopError
from isoflop.methods.base import METHODS, Method
from isoflop.plan import Plan
from isoflop.sparsity.allocation import allocation_of, exact_counts


def step_macs(macs: int, unmasked_macs: int, *, dense_gradient: bool) -> int:
    """Return the MACs of one training step.

    A forward pass, the gradient of the activations and that of the weights cost `macs` each; the
    gradient of all weights, masked ones included, costs `unmasked_macs` in place of the last.

    Source: Evci et al. 2020, appendix on FLOPs, https://arxiv.org/abs/1911.11134.
    """
    return 2 * macs + (unmasked_macs if dense_gradient else macs)


def training_macs(
    method: Method, total_steps: int, unmasked_macs: int, macs_after: Iterable[tuple[int, int]]
) -> int:
    """Return the MACs of a whole training.

    Args:
        method: The method, which says in which steps the dense gradient is computed.
        total_steps: Optimizer steps.
        unmasked_macs: MACs of a forward pass without masks.
        macs_after: Pairs of a number of steps and the MACs of a forward pass from then on, in
            order, the first with 0 steps.
    """
    changes = [*macs_after, (total_steps, 0)]
    total = 0
    for (first, macs), (end, _) in itertools.pairwise(changes):
        dense = sum(method.observes(step + 1, total_steps) for step in range(first, end))
        total += 3 * macs * (end - first) + dense * (unmasked_macs - macs)
    return total


def training_flops(plan: Plan, method: Method | str, total_steps: int) -> int:
    """Forecast the FLOPs of training a sparse model, before it is trained.

    They are what `Sparsifier.training_macs` counts in the end, times 2. Methods differ: with static
    masks, pruning at initialisation and SET a step costs three forward passes of the sparse model,
    ``3 f_S``; RigL computes a dense gradient every ΔT steps, ``2 f_S + f_D``; SNFS and SR-STE do so
    in every step; GMP and GraNet begin with more weights and end with fewer. Scoring before
    training is not included.

    Args:
        plan: The plan that `isoflop.transform` returned, or one of `isoflop.plain_plan` that counts MACs.
        method: The method, or its registered name.
        total_steps: Optimizer steps of the whole training.

    Returns:
        FLOPs (1 MAC = 2 FLOPs) of all steps, each on one batch of the size of the example inputs
        of the plan, which mostly is one sample. Exact, but for methods with a pruning schedule,
        where each step may differ by a weight.
    """
    if isinstance(method, str):
        method = METHODS.get(method)()
    if total_steps < 1:
        raise IsoflopError(f"total_steps must be positive, not {total_steps}.")
    if not plan.is_counted:
        raise IsoflopError(
            "The plan counts no MACs. Pass example_inputs to `isoflop.plain_plan`, such as "
            "example_inputs=(1, 3, 32, 32)."
        )
    unmasked = plan.unmasked_macs
    if not method.masks_weights:
        return 2 * training_macs(method, total_steps, unmasked, [(0, unmasked)])
    pruning_schedule = method.pruning_schedule
    if pruning_schedule is None:
        return 2 * training_macs(method, total_steps, unmasked, [(0, plan.macs)])
    pruning_schedule.check(total_steps)
    layers = plan.sparse_layers
    shapes = [layer.shape for layer in layers]
    allocation = allocation_of(plan)
    weights = max(
        len(layers), math.floor(pruning_schedule.initial_density * sum(x.numel for x in layers))
    )
    counts = exact_counts(shapes, allocation(shapes, pruning_schedule.initial_density), weights)
    initial = sum(int(n * x.macs_per_weight) for n, x in zip(counts, layers, strict=True))
    budget = sum(layer.macs for layer in layers)
    # A plain sparsity is that of the end, the budget of a transform that of the average.
    final = budget
    if plan.is_transformed:
        final = pruning_schedule.final_cost(initial, budget, total_steps)
    fixed = plan.macs - budget
    changes = [(0, fixed + initial)] + [
        (step, fixed + pruning_schedule.cost(initial, final, step, total_steps))
        for step in range(1, total_steps)
        if pruning_schedule.due(step, total_steps)
    ]
    return 2 * training_macs(method, total_steps, unmasked, changes)
