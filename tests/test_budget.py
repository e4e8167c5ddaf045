import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.budget import meet_layer_budgets, meet_model_budget, spread_anew
from isoflop.errors import BudgetError
from isoflop.plan import LayerPlan, Plan
from isoflop.sparsity.allocation import erk, uniform


def make_plan(sizes, prices, densities, dense_macs, other=0) -> Plan:
    return Plan(
        transform="wide",
        config={},
        scope="model",
        dense_macs=dense_macs,
        other_macs=other,
        layers=tuple(
            LayerPlan(
                parameter=f"{i}.weight",
                source=str(i),
                kind="sparse",
                dense_shape=(size,),
                shape=(size, 1),
                nnz=size,
                macs_per_weight=price,
                source_macs=max(1, int(size * price * density)),
                nominal_density=density,
            )
            for i, (size, price, density) in enumerate(zip(sizes, prices, densities, strict=True))
        ),
    )


layers = st.lists(
    st.tuples(st.integers(1, 5000), st.sampled_from([1, 4, 16, 49, 64, 1024]), st.floats(0.05, 1)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(layers=layers, fraction=st.floats(0, 1))
def test_the_model_budget_is_met_to_half_a_weight(layers, fraction):
    sizes, prices, densities = zip(*layers, strict=True)
    floor = sum(prices)
    capacity = sum(size * price for size, price in zip(sizes, prices, strict=True))
    budget = floor + int(fraction * (capacity - floor))
    plan = meet_model_budget(make_plan(sizes, prices, densities, budget))
    assert all(1 <= layer.nnz <= layer.numel for layer in plan.layers)
    # Within one weight of the layers that had room left.
    assert abs(plan.macs - budget) < max(prices)
    free = [layer for layer in plan.layers if 1 < layer.nnz < layer.numel]
    if len(free) == len(plan.layers):
        assert abs(plan.macs - budget) <= min(prices) / 2


def test_uniform_means_equal_densities():
    plan = meet_model_budget(make_plan([10_000] * 3, [64, 16, 4], [0.25] * 3, 210_000))
    assert plan.macs == 210_000
    assert [layer.density for layer in plan.layers] == pytest.approx([0.25] * 3, abs=1e-3)


def test_depthwise_layers_keep_their_own_share():
    plan = meet_model_budget(make_plan([10_000] * 2, [10, 10], [0.25, 0.5], 37_500))
    assert [layer.density for layer in plan.layers] == pytest.approx([0.125, 0.25], abs=1e-3)


def test_layer_budgets_are_met_one_by_one():
    plan = meet_layer_budgets(make_plan([1000, 999], [8, 5], [0.25, 0.3], 1))
    assert [layer.macs for layer in plan.layers] == [2000, 1500]
    assert abs(plan.layer_gap) < 5 / 1498


def test_impossible_budgets_say_what_to_do():
    plan = make_plan([100, 100], [10, 10], [0.5, 0.5], 1000, other=995)
    with pytest.raises(BudgetError, match=r"995 of the dense.*lower sparsity.*dense_ends=False"):
        meet_model_budget(plan)
    with pytest.raises(BudgetError, match=r"Even without a zero.*higher sparsity"):
        meet_model_budget(dataclasses.replace(plan, dense_macs=10_000))


def test_a_dense_part_larger_than_its_layer_is_refused():
    plan = make_plan([100], [10], [0.5], 1000)
    extra = dataclasses.replace(plan.layers[0], parameter="0.low_rank.weight", kind="dense")
    with pytest.raises(BudgetError, match=r"'0' costs 1,000 MACs.*another sparsity"):
        meet_layer_budgets(dataclasses.replace(plan, layers=(*plan.layers, extra)))


def test_another_allocation_meets_the_same_budget():
    shapes = [(16, 16, 1, 1), (64, 64, 3, 3), (256, 256, 3, 3)]
    plan = Plan(
        transform="wide",
        config={},
        scope="model",
        dense_macs=9_000_000,
        other_macs=0,
        layers=tuple(
            LayerPlan(
                parameter=f"{i}.weight",
                source=str(i),
                kind="sparse",
                dense_shape=shape,
                shape=shape,
                nnz=1,
                macs_per_weight=price,
                source_macs=1,
            )
            for i, (shape, price) in enumerate(zip(shapes, (1024, 256, 64), strict=True))
        ),
    )
    new = spread_anew(plan, erk, "erk")
    assert new.allocation == "erk"
    assert new.macs == 9_000_000 or abs(new.relative_gap) <= 1e-6
    assert new.layers[0].density > new.layers[1].density > new.layers[2].density
    again = spread_anew(new, uniform, "uniform")
    assert abs(again.relative_gap) <= 1e-6
    assert again.layers[0].density == pytest.approx(again.layers[2].density, abs=0.01)
