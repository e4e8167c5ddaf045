"""Solving for the integer numbers of non-zeros that meet a FLOP budget.

Appendix A.2 of the paper bisects the sparsity until the FLOPs of the sparse network match those of
the dense one. Here the bisection gives real densities, and the integers after it are repaired with
the weights that cost the fewest MACs, so that what is left is less than one of those weights.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from isoflop.errors import BudgetError
from isoflop.plan import LayerPlan, Plan

TOLERANCE = 1e-6
"""Largest relative FLOP gap that the paper allows (appendix A.2)."""

Densities = Callable[[float], Sequence[float]]
"""Maps one parameter in [0, 1], a global density, to the density of every sparse layer."""


def meet_model_budget(plan: Plan) -> Plan:
    """Set the non-zeros so that the whole model costs what the dense model does.

    Layers keep the ratios of their nominal densities; one factor scales them all.

    Raises:
        BudgetError: The parts that stay dense cost too much, or the sparse ones too little.
    """
    layers = plan.sparse_layers
    nominal = [layer.nominal_density for layer in layers]
    largest = max(1.0 / density for density in nominal)
    return _meet_model(plan, lambda t: [min(1.0, t * largest * density) for density in nominal])


def meet_layer_budgets(plan: Plan) -> Plan:
    """Set the non-zeros so that each transformed layer costs what the layer it replaces did.

    Raises:
        BudgetError: The dense part of a layer costs more than the layer that it replaces.
    """
    counts: dict[str, int] = {}
    for source in dict.fromkeys(layer.source for layer in plan.sparse_layers):
        layers = [layer for layer in plan.sparse_layers if layer.source == source]
        fixed = sum(
            layer.macs for layer in plan.layers if layer.source == source and layer.kind == "dense"
        )
        target = layers[0].source_macs - fixed
        if target < sum(layer.macs_per_weight for layer in layers):
            raise BudgetError(
                f"The dense part of what replaces {source!r} costs {fixed:,} MACs, which leaves "
                f"nothing of its budget of {layers[0].source_macs:,}: use another sparsity, or "
                f"exclude {source!r}."
            )
        density = min(1.0, target / sum(layer.unmasked_macs for layer in layers))
        solved = _integers(layers, [density] * len(layers), target)
        counts |= {layer.parameter: n for layer, n in zip(layers, solved, strict=True)}
    return with_counts(plan, counts)


def spread_anew(
    plan: Plan, densities: Callable[[Sequence[tuple[int, ...]], float], Sequence[float]], name: str
) -> Plan:
    """Spread the sparsity over the layers in another way, at the same budget.

    Args:
        plan: A plan whose sizes stay.
        densities: Maps the shapes of the sparse layers and a global density to their densities,
            such as ERK.
        name: Name of that allocation.

    Returns:
        The plan with new non-zeros; its FLOPs match the dense model's.

    Raises:
        BudgetError: No global density meets the budget.
    """
    shapes = [layer.shape for layer in plan.sparse_layers]
    solved = _meet_model(plan, lambda density: densities(shapes, density))
    return dataclasses.replace(solved, allocation=name)


def _meet_model(plan: Plan, densities: Densities) -> Plan:
    layers = plan.sparse_layers
    fixed = plan.other_macs + sum(layer.macs for layer in plan.layers if layer.kind == "dense")
    target = plan.dense_macs - fixed
    floor = sum(layer.macs_per_weight for layer in layers)
    capacity = sum(layer.unmasked_macs for layer in layers)
    if target < floor:
        raise BudgetError(
            f"The parts that stay dense cost {fixed:,} of the dense model's {plan.dense_macs:,} "
            f"MACs{_largest_dense(plan)}, which leaves too little for one weight in each of the "
            f"{len(layers)} sparse layers. Use a lower sparsity, `dense_ends=False`, or "
            '`scope="layers"`.'
        )
    if target - capacity > TOLERANCE * plan.dense_macs:
        raise BudgetError(
            f"Even without a zero, the transformed model costs {fixed + capacity:,} MACs, less "
            f"than the dense model's {plan.dense_macs:,}: its sizes are too small. Use a higher "
            "sparsity or transform more layers."
        )

    def cost(values: Sequence[float]) -> float:
        return sum(value * layer.unmasked_macs for value, layer in zip(values, layers, strict=True))

    low, high = 0.0, 1.0
    # 60 halvings exhaust the precision of a float.
    for _ in range(60):
        middle = (low + high) / 2
        if cost(densities(middle)) < target:
            low = middle
        else:
            high = middle
    solved = _integers(layers, densities(high), target)
    return with_counts(plan, {layer.parameter: n for layer, n in zip(layers, solved, strict=True)})


def nearest_counts(
    prices: Sequence[int | Fraction],
    sizes: Sequence[int],
    ideal: Sequence[float],
    target: int,
    floors: Sequence[int] | None = None,
) -> list[int]:
    """Round ideal counts to integers whose total cost is as near to `target` as can be.

    The cheapest weights take the remainder. Where those are all in use already, dearer ones
    overshoot it in the first round, by no more than the cheapest can make good in the second.

    Args:
        prices: What one weight of each layer costs.
        sizes: The most weights that each layer can have.
        ideal: How many weights each layer should have.
        target: Sum of count times price to be met.
        floors: The fewest weights that each layer can have; by default 1.
    """
    floors = [1] * len(sizes) if floors is None else floors
    counts = [
        min(size, max(floor, round(count)))
        for size, floor, count in zip(sizes, floors, ideal, strict=True)
    ]
    ordered = sorted(set(prices))

    def rest() -> int | Fraction:
        return target - sum(n * price for n, price in zip(counts, prices, strict=True))

    def room() -> int | Fraction:
        """MACs that half of the cheapest weights could make good."""
        cheapest = [i for i, price in enumerate(prices) if price == ordered[0]]
        spare = sum(sizes[i] - counts[i] for i in cheapest)
        used = sum(counts[i] - floors[i] for i in cheapest)
        return ordered[0] * (used if sign > 0 else spare) // 2

    sign = 1 if rest() > 0 else -1
    rounds = [*((p, p != ordered[0]) for p in ordered), *((p, False) for p in ordered)]
    for price, overshoot in rounds:
        left = sign * rest()
        if 2 * abs(left) <= ordered[0]:
            break
        if overshoot and left < 0:
            continue  # one price has overshot already
        wanted = math.floor(left / price + 0.5)
        above = math.ceil(left / price)
        if overshoot and above * price - left <= room():
            wanted = above
        members = [i for i, p in enumerate(prices) if p == price]
        _add(counts, sizes, floors, members, sign * wanted)
    return counts


def _add(
    counts: list[int],
    sizes: Sequence[int],
    floors: Sequence[int],
    members: Sequence[int],
    wanted: int,
) -> None:
    """Spread `wanted` more weights, or fewer, evenly over the `members` that can take them."""
    # Twice: what a full layer cannot take in the first pass, another may in the second.
    for left in (*range(len(members), 0, -1), *range(len(members), 0, -1)):
        i = members[-left]
        share = math.ceil(wanted / left) if wanted > 0 else math.floor(wanted / left)
        new = min(sizes[i], max(floors[i], counts[i] + share))
        wanted -= new - counts[i]
        counts[i] = new


def _integers(layers: Sequence[LayerPlan], densities: Sequence[float], target: int) -> list[int]:
    return nearest_counts(
        [layer.macs_per_weight for layer in layers],
        [layer.numel for layer in layers],
        [density * layer.numel for layer, density in zip(layers, densities, strict=True)],
        target,
    )


def with_counts(plan: Plan, counts: Mapping[str, int]) -> Plan:
    """Return `plan` with other numbers of non-zeros, by parameter name."""
    return dataclasses.replace(
        plan,
        layers=tuple(
            dataclasses.replace(layer, nnz=counts.get(layer.parameter, layer.nnz))
            for layer in plan.layers
        ),
    )


def _largest_dense(plan: Plan) -> str:
    dense = sorted((x for x in plan.layers if x.kind == "dense"), key=lambda x: -x.macs)[:2]
    names = " and ".join(f"{layer.macs:,} for {layer.parameter}" for layer in dense)
    return f" ({names})" if names else ""
