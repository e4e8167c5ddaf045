from fractions import Fraction

import pytest
import torch
from tests.budgets import sparsify_arguments

import isoflop
from isoflop.errors import IsoflopError
from isoflop.methods import GMP, SET, SNFS, SNIP, SRSTE, Dense, GraNet, RigL, Static
from isoflop.plan import LayerPlan, Plan
from isoflop.sparsity.accounting import step_macs, training_flops


def plan_at(fraction, dense=1_000_000):
    """Plan of one layer whose sparse forward pass costs `fraction` of the dense one."""
    layer = LayerPlan(
        parameter="weight",
        source="",
        kind="sparse",
        dense_shape=(1000, 1000),
        shape=(1000, 1000),
        nnz=round(fraction * dense),
        macs_per_weight=1,
        source_macs=dense,
    )
    return Plan(
        transform="wide",
        config={},
        scope="model",
        dense_macs=dense,
        other_macs=0,
        layers=(layer,),
    )


@pytest.mark.parametrize(("fraction", "relative"), [(0.23, 0.23254), (0.42, 0.42191)])
def test_rigl_costs_what_its_paper_says(fraction, relative):
    # There, ΔT = 100 sparse steps are followed by one that computes the dense gradient in place of
    # an optimizer step; here that step is one of the ΔT, so their ΔT + 1 is our ΔT.
    method = RigL(update_every=101, end_fraction=1.0)
    steps = 101 * 1000 + 1  # so that every period ends with its update
    sparse = training_flops(plan_at(fraction), method, steps)
    dense = training_flops(plan_at(fraction), Dense(), steps)
    assert sparse / dense == pytest.approx(relative, abs=5e-6)
    formula = (3 * fraction * 100 + 2 * fraction + 1) / 101 / 3
    assert sparse / dense == pytest.approx(formula, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "thirds"),
    [
        (Dense(), Fraction(3)),
        (Static(), Fraction(3, 4)),
        (SNIP(), Fraction(3, 4)),
        (SET(update_every=1), Fraction(3, 4)),
        (SRSTE(), Fraction(2, 4) + 1),
        (
            RigL(update_every=1, end_fraction=0.5),
            Fraction(3, 4) + Fraction(49, 100) * Fraction(3, 4),
        ),
        (SNFS(update_every=1), Fraction(3, 4) + Fraction(99, 100) * Fraction(3, 4)),
        (GMP(update_every=1), Fraction(3, 4)),  # on average
    ],
)
def test_formulas_by_method(method, thirds):
    flops = training_flops(plan_at(0.25), method, 100)
    # A ramp can be off by a weight, of one MAC here, in each of the 100 steps.
    assert abs(flops - 2 * 10**6 * 100 * thirds) <= 2 * 3 * 100


def test_steps():
    assert step_macs(10, 40, dense_gradient=False) == 30
    assert step_macs(10, 40, dense_gradient=True) == 60


@pytest.mark.parametrize("method", [GMP(update_every=2), GraNet(update_every=3), RigL(), SNIP()])
def test_the_forecast_is_what_training_counts(method):
    model = torch.nn.Linear(1000, 1000, bias=False)
    plan = plan_at(0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        method,
        plan,
        total_steps=12,
        scoring=isoflop.ScoringData(
            batches=[(torch.randn(2, 1000), torch.zeros(2, dtype=torch.long))],
            loss=torch.nn.functional.cross_entropy,
        ),
    )
    for _ in range(12):
        model.weight.grad = torch.randn(1000, 1000)
        optimizer.step()
    assert 2 * sparsifier.training_macs() == training_flops(plan, method, 12)
    assert sparsifier.forecast_macs() == sparsifier.training_macs()


def test_macs_need_a_plan_or_inputs():
    def make(**options):
        model = torch.nn.Linear(8, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"sparsity": 0.5, "dense_ends": False, "total_steps": 5} | options
        return isoflop.sparsify(model, optimizer, "static", **sparsify_arguments(model, **options))

    for name in ("step_macs", "training_macs", "average_macs", "forecast_macs"):
        with pytest.raises(IsoflopError, match="example_inputs"):
            getattr(make(), name)()
    assert make(example_inputs=(1, 8)).forecast_macs() == 3 * 32 * 5
    with pytest.raises(IsoflopError, match="positive"):
        training_flops(plan_at(0.5), "rigl", 0)
    assert training_flops(plan_at(0.5), "static", 2) == 2 * 3 * 500_000 * 2


# RigL's authors publish test FLOPs of ResNet-50 on ImageNet as multiples of the dense model's, in
# the README of https://github.com/google-research/rigl: 80 % and 90 % sparse, uniform and ERK. The
# last layer is sparse. The first convolution is dense in the uniform case (section 3 of the paper,
# https://arxiv.org/abs/1911.11134); ERK gives it a density as to any other layer: kept dense, it
# alone would make the 90 % figure 0.26.
@pytest.mark.parametrize(
    ("allocation", "sparsity", "multiple"),
    [("uniform", 0.8, 0.23), ("uniform", 0.9, 0.13), ("erk", 0.8, 0.42), ("erk", 0.9, 0.24)],
)
def test_resnet50_costs_what_the_authors_of_rigl_publish(allocation, sparsity, multiple):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    sparsifier = isoflop.sparsify(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        "static",
        isoflop.plain_plan(
            model,
            sparsity,
            example_inputs=(1, 3, 224, 224),
            allocation=allocation,
            dense_ends=False,
            exclude=["conv1"] if allocation == "uniform" else [],
        ),
        total_steps=1,
    )
    plan = sparsifier.plan
    assert plan is not None
    assert "fc.weight" in sparsifier.masks
    assert ("conv1.weight" in sparsifier.masks) == (allocation == "erk")
    # 4.09 billion MACs, the 8.2 billion FLOPs of the same table.
    assert 2 * plan.dense_macs == pytest.approx(8.2e9, rel=0.005)
    assert plan.macs / plan.dense_macs == pytest.approx(multiple, abs=0.01)
