"""Allocations: how one global density is spread over the layers.

An allocation takes the shapes of the weights and a global density, and returns one density per
weight such that ``sum(density_l * numel_l) == density * sum(numel_l)``. Registering another
function in `ALLOCATIONS` makes it available everywhere.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from isoflop.budget import spread_anew, with_counts
from isoflop.errors import BudgetError, IsoflopError, PlanError
from isoflop.plan import Plan
from isoflop.registry import Registry

Shape = tuple[int, ...]
Allocation = Callable[[Sequence[Shape], float], list[float]]

ALLOCATIONS: Registry[Allocation] = Registry("allocation")


@ALLOCATIONS.register("uniform")
def uniform(shapes: Sequence[Shape], density: float) -> list[float]:
    """Give every layer the same density."""
    _check_density(density)
    return [density] * len(shapes)


@ALLOCATIONS.register("er")
def er(shapes: Sequence[Shape], density: float) -> list[float]:
    """Erdős-Rényi: density in proportion to ``(n_in + n_out) / (n_in * n_out)``.

    Kernel sizes are ignored, so small layers become denser than large ones. Source: Mocanu et al.
    2018, "Scalable training of artificial neural networks with adaptive sparse connectivity",
    https://arxiv.org/abs/1707.04780.
    """
    return _proportional(shapes, density, [_raw_density(shape[:2]) for shape in shapes])


@ALLOCATIONS.register("erk")
def erk(shapes: Sequence[Shape], density: float) -> list[float]:
    """Erdős-Rényi-Kernel: density in proportion to ``sum(shape) / prod(shape)``.

    Keeps the number of parameters of `uniform`, not its FLOPs: the early layers of a convolutional
    network are small and run often. Source: Evci et al. 2020, "Rigging the lottery", section 3,
    https://arxiv.org/abs/1911.11134.
    """
    return _proportional(shapes, density, [_raw_density(shape) for shape in shapes])


def num_nonzero(numel: int, sparsity: float) -> int:
    """Return how many of `numel` weights stay: all but ``floor(sparsity * numel)``."""
    exact = sparsity * numel
    nearest = round(exact)
    # 0.57 * 100 is 56.99999999999999 in floating point, and 57 weights are meant.
    return numel - (nearest if abs(exact - nearest) < 1e-6 else math.floor(exact))


def exact_counts(shapes: Sequence[Shape], densities: Sequence[float], total: int) -> list[int]:
    """Turn densities into integer numbers of non-zeros that sum to exactly `total`.

    Counts are rounded down, and the weights left over go to the layers with the largest remainders
    (the earlier layer if equal). Every layer keeps at least one weight.

    Args:
        shapes: Shapes of the weights.
        densities: Their densities, as an allocation returns them.
        total: Number of non-zeros in all layers together.

    Raises:
        BudgetError: The densities do not fit `total`, or `total` leaves no weight for some layer.
    """
    numels = [math.prod(shape) for shape in shapes]
    if len(densities) != len(shapes) or not all(0 <= density <= 1 for density in densities):
        raise BudgetError(
            f"The allocation must return one density in [0, 1] for each of {len(shapes)} layers, "
            f"not {list(densities)}."
        )
    if not len(shapes) <= total <= sum(numels):
        raise BudgetError(
            f"{total:,} non-zero weights cannot be spread over {len(shapes)} layers of "
            f"{sum(numels):,} weights with at least one in each. Lower the sparsity."
        )
    ideal = [density * numel for density, numel in zip(densities, numels, strict=True)]
    if abs(sum(ideal) - total) > 1 + 1e-6 * sum(numels):
        raise BudgetError(
            f"The allocation's densities keep {sum(ideal):,.0f} weights, not {total:,}. "
            "An allocation must return densities whose average over all weights is the one given."
        )
    counts = [max(1, math.floor(count)) for count in ideal]
    while (missing := total - sum(counts)) != 0:
        sign = 1 if missing > 0 else -1
        limits = numels if missing > 0 else [1] * len(numels)
        open_layers = [i for i in range(len(counts)) if counts[i] != limits[i]]
        furthest = max(open_layers, key=lambda i: sign * (ideal[i] - counts[i]))
        counts[furthest] += sign
    return counts


def find_allocation(value: Allocation | str) -> Allocation:
    """Return `value`, or the allocation of that name."""
    if isinstance(value, str):
        return ALLOCATIONS.get(value)
    if not callable(value):
        known = ", ".join(repr(name) for name in ALLOCATIONS.names())
        raise IsoflopError(
            f"The allocation must be a name ({known}) or a function of shapes and density, not "
            f"{value!r}."
        )
    return value


def allocation_name(function: Allocation) -> str:
    """Return the registered name of an allocation, or its own."""
    names = (name for name, known in ALLOCATIONS.items() if known is function)
    return next(names, getattr(function, "__name__", "custom"))


def allocation_of(plan: Plan) -> Allocation:
    """Return the allocation of a plan, or uniform if it is not registered."""
    return ALLOCATIONS.get(plan.allocation if plan.allocation in ALLOCATIONS.names() else "uniform")


def reallocate(plan: Plan, allocation: Allocation | str) -> Plan:
    """Spread the sparsity over the layers in another way, at the same budget.

    The budget is the FLOPs of the dense model, or, for a plan of `isoflop.plain_plan`, the number of
    weights.

    Args:
        plan: A plan whose sizes stay.
        allocation: A registered name such as ``"erk"``, or a function that maps the shapes of the
            sparse layers and a global density to their densities.

    Returns:
        The plan with new non-zeros.

    Raises:
        BudgetError: No global density meets the budget.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"plan must be what `isoflop.transform` returned, not {plan!r}.")
    function = find_allocation(allocation)
    name = allocation_name(function)
    if name == plan.allocation:
        return plan
    if plan.is_transformed:
        return spread_anew(plan, function, name)
    layers = plan.sparse_layers
    shapes = [layer.shape for layer in layers]
    total = sum(layer.nnz for layer in layers)
    counts = exact_counts(shapes, function(shapes, plan.density), total)
    names = [layer.parameter for layer in layers]
    plan = with_counts(plan, dict(zip(names, counts, strict=True)))
    return dataclasses.replace(plan, allocation=name)


def _raw_density(shape: Shape) -> float:
    return sum(shape) / math.prod(shape)


def _proportional(shapes: Sequence[Shape], density: float, raw: Sequence[float]) -> list[float]:
    """Scale `raw` by one factor so that the whole has `density`; no layer exceeds 1."""
    _check_density(density)
    numels = [math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    factor = 0.0
    while len(dense) < len(shapes):
        sparse = [i for i in range(len(shapes)) if i not in dense]
        budget = density * sum(numels) - sum(numels[i] for i in dense)
        if budget < 0:
            raise BudgetError(
                f"Density {density} cannot be met: the layers that must be dense exceed it. "
                "Use a larger density or the uniform allocation."
            )
        factor = budget / sum(raw[i] * numels[i] for i in sparse)
        largest = max(raw[i] for i in sparse)
        if factor * largest <= 1:
            break
        # Only the worst offenders become dense. What they cannot take raises the factor of the
        # rest, so whether another layer overflows is known only after computing it anew; clamping
        # all at once would lose part of the budget.
        dense.update(i for i in sparse if raw[i] == largest)
    return [1.0 if i in dense else factor * raw[i] for i in range(len(shapes))]


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise BudgetError(f"A density must lie in (0, 1], not {density}.")
