"""SNIP, iterative SNIP, FORCE, GraSP and SynFlow, by the numbers worked out by hand."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.budgets import sparsify_arguments
from tests.zoo import ZOO
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import isoflop
from isoflop.errors import (
    BudgetError,
    InputError,
    IsoflopError,
    LayerCollapseWarning,
    NoEffectWarning,
)
from isoflop.lab.models.resnet import BasicBlock, resnet8_digits
from isoflop.lab.training.tracking import messages
from isoflop.methods import FORCE, SNIP, GraSP, IterativeSNIP, SynFlow
from isoflop.methods.base import METHODS
from isoflop.methods.prune_at_init import CalibratedPruning, PruneAtInit, Rounds
from isoflop.patterns import Unstructured
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.budget_spec import BudgetSpec
from isoflop.sparsity.init_context import InitContext, ScoringData
from isoflop.sparsity.targets import MaskedTarget

PRUNERS = [name for name, cls in METHODS.items() if issubclass(cls, PruneAtInit)]
CALIBRATED = [name for name, cls in METHODS.items() if issubclass(cls, CalibratedPruning)]


def half_squares(outputs, targets):
    return 0.5 * (outputs.squeeze(-1) - targets).square().sum()


def linear(weights):
    model = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def start_for(model, names, nnz, batches=None, loss=None, example_inputs=None):
    targets = []
    for name, count in zip(names, nnz, strict=True):
        path, _, parameter = name.rpartition(".")
        targets.append(MaskedTarget(name, count, model.get_submodule(path), parameter))
    return InitContext(
        model=model,
        budget_spec=BudgetSpec(tuple(targets), (1,) * len(targets), Unstructured()),
        counts=nnz,
        generator=torch.Generator().manual_seed(0),
        scoring=ScoringData(batches=batches, loss=loss, example_inputs=example_inputs),
    )


def kept(mask):
    return mask.flatten().nonzero().flatten().tolist()


# SNIP: L = ½ (w·x - y)², w = (1, -2, .3), x = (1, 1, 2), y = .6, so the residual is -1.

SNIP_BATCH = [(torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([0.6]))]


def test_snip_scores():
    context = start_for(linear([1.0, -2.0, 0.3]), ["weight"], [2], SNIP_BATCH, half_squares)
    scoring_model = SNIP().scoring_model(context)
    (scores,) = SNIP().scores(scoring_model, [torch.ones(1, 3, dtype=torch.bool)])
    assert (scores / scores.sum()).flatten().tolist() == pytest.approx(
        [0.2778, 0.5556, 0.1667], abs=5e-5
    )
    (mask,) = SNIP(min_per_output=0).initial_masks(context)
    assert kept(mask) == [0, 1]


def test_snip_averages_gradients_before_the_absolute_value():
    # The two batches pull the first weight in opposite directions.
    batches = [
        (torch.tensor([[3.0, 1.0]]), torch.tensor([4.0])),
        (torch.tensor([[-3.0, 1.0]]), torch.tensor([-2.0])),
    ]
    model = linear([0.0001, 1.0])
    context = start_for(model, ["weight"], [1], batches, half_squares)
    method = SNIP(batches=2)
    scoring_model = method.scoring_model(context)
    (gradient,) = scoring_model.gradients([torch.ones(1, 2, dtype=torch.bool)])
    each = [torch.autograd.grad(half_squares(model(x), y), [model.weight])[0] for x, y in batches]
    torch.testing.assert_close(gradient, (each[0] + each[1]) / 2)


# Iterative SNIP and FORCE: L = ½ (w₁ - .9 w₂)² + ½ (w₃ - .5)², w₀ = (1, 1, 1).

FORCE_BATCH = [(torch.tensor([[1.0, -0.9, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0.0, 0.5]))]


@pytest.mark.parametrize(
    ("method", "second", "chosen"),
    [
        (IterativeSNIP(min_per_output=0), [1.0, 0.0, 0.5], [0, 2]),
        (FORCE(min_per_output=0), [1.0, 0.9, 0.5], [0, 1]),
    ],
)
def test_force_resurrects_and_iterative_snip_does_not(method, second, chosen):
    context = start_for(linear([1.0, 1.0, 1.0]), ["weight"], [2], FORCE_BATCH, half_squares)
    scoring_model = method.scoring_model(context)
    (scores,) = method.scores(scoring_model, [torch.ones(1, 3, dtype=torch.bool)])
    assert scores.flatten().tolist() == pytest.approx([0.1, 0.09, 0.5])
    (mask,) = context.budget_spec.select([scores], [2])
    assert kept(mask) == [0, 2]
    (scores,) = method.scores(scoring_model, [mask])
    assert scores.flatten().tolist() == pytest.approx(second)
    (mask,) = context.budget_spec.select([scores], [2])
    assert kept(mask) == chosen


def test_the_density_of_rounds():
    rounds = Rounds(4)
    assert [rounds.density(0.1, t) for t in range(1, 5)] == pytest.approx(
        [0.56234, 0.31623, 0.17783, 0.1], abs=5e-6
    )
    linear_rounds = Rounds(4, "linear")
    assert [linear_rounds.density(0.2, t) for t in range(1, 5)] == pytest.approx(
        [0.8, 0.6, 0.4, 0.2]
    )
    with pytest.raises(IsoflopError, match="'exponential' or 'linear'"):
        IterativeSNIP(schedule="cubic")
    with pytest.raises(IsoflopError, match="positive integer"):
        FORCE(rounds=0)


# GraSP: L = ½ wᵀ A w with A = [[2, 1], [1, 3]], as a sum over the rows x of X with Xᵀ X = A.


def test_grasp_keeps_what_the_gradient_flow_needs():
    square_root = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 3.0]])).T
    batches = [(square_root, torch.zeros(2))]
    context = start_for(linear([1.0, -1.0]), ["weight"], [1], batches, half_squares)
    method = GraSP(temperature=1, min_per_output=0)
    scoring_model = method.scoring_model(context)
    everything = [torch.ones(1, 2, dtype=torch.bool)]
    assert scoring_model.gradients(everything)[0].flatten().tolist() == pytest.approx([1, -2])
    (product,) = scoring_model.hessian_gradient_products(everything)
    assert product.flatten().tolist() == pytest.approx([0, -5], abs=1e-6)
    (scores,) = method.scores(scoring_model, everything)  # those of the paper, S = (0, -5), negated
    assert scores.flatten().tolist() == pytest.approx([0, 5], abs=1e-6)
    (mask,) = method.initial_masks(context)
    assert kept(mask) == [1]


def test_grasp_in_halves_uses_the_gradient_of_the_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(8, 4).double(), torch.arange(8) % 3
    names = ["0.weight", "2.weight"]
    masks = [torch.ones(5, 4, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)]
    whole = GraSP().scoring_model(start_for(model, names, [5, 5], [(x, y)], F.cross_entropy))
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    halves = GraSP(batches=2).scoring_model(start_for(model, names, [5, 5], parts, F.cross_entropy))
    for a, b in zip(
        whole.hessian_gradient_products(masks),
        halves.hessian_gradient_products(masks),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


# SynFlow: W1 = [[1, -2], [3, .5]], W2 = [2, -1].


def test_synflow_scores_are_conserved():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        model.get_parameter("1.weight").copy_(torch.tensor([[2.0, -1.0]]))
    names = ["0.weight", "1.weight"]
    context = start_for(model, names, [2, 1], example_inputs=(1, 2))
    scoring_model = SynFlow().scoring_model(context)
    masks = [torch.ones_like(w, dtype=torch.bool) for w in scoring_model.weights]
    first, second = SynFlow().scores(scoring_model, masks)
    assert first.dtype == torch.float64
    assert first.tolist() == [[2, 4], [3, 0.5]]
    assert second.tolist() == [[6, 3.5]]
    assert first.sum() == second.sum() == 9.5


# What holds for all of them.


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 2, groups=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def batches():
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(10, 3, 6, 6, generator=generator), torch.arange(10) % 5) for _ in range(3)]


def prune(model, method, **options: Any):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {
        "sparsity": 0.8,
        "dense_ends": False,
        "total_steps": 10,
        "batches": batches(),
        "loss": F.cross_entropy,
        "example_inputs": (1, 3, 6, 6),
    } | options
    return sparsify(model, optimizer, method, **sparsify_arguments(model, **options))


@pytest.mark.parametrize("name", PRUNERS)
def test_scoring_leaves_the_model_alone(name):
    model = small_net()
    scale = model.get_parameter("1.weight")
    scale.grad = torch.ones(8)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    first = prune(model, name)
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert torch.equal(scale.grad, torch.ones(8))
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["1.weight"]
    for key, value in before.items():
        mask = first.masks.get(key)
        assert torch.equal(model.state_dict()[key], value if mask is None else value * mask)
    torch.manual_seed(99)  # no say in the masks
    second = prune(small_net(), name)
    for key, mask in first.masks.items():
        assert torch.equal(mask, second.masks[key])


@pytest.mark.parametrize("name", PRUNERS)
def test_every_output_keeps_a_weight(name):
    sparsifier = prune(small_net(), name, sparsity=0.9)
    total = sum(mask.numel() for mask in sparsifier.masks.values())
    assert sum(sparsifier.nnz.values()) == round(0.1 * total + 0.5)
    for target in sparsifier._targets:
        outputs = int(target.by_output(target.mask).any(dim=1).sum())
        assert outputs == {"0": 8, "4": 8, "5": 4, "8": 5}[target.name[0]]


@pytest.mark.parametrize("name", CALIBRATED)
def test_missing_arguments_are_named(name):
    model = small_net()
    before = list(model.state_dict())
    with pytest.raises(IsoflopError, match=r"batches=.*, loss=F\.cross_entropy"):
        prune(model, name, batches=None, loss=None)
    with pytest.raises(IsoflopError, match="must be a function"):
        prune(model, name, loss="cross_entropy")
    with pytest.raises(IsoflopError, match="iterable of pairs"):
        prune(model, name, batches=3)
    with pytest.raises(InputError, match="pairs of inputs and targets"):
        prune(model, name, batches=torch.randn(2, 3, 6, 6))
    with pytest.raises(InputError, match="have 0"):
        prune(model, name, batches=[])
    with pytest.raises(InputError, match="cannot be computed"):
        prune(model, name, batches=[(torch.randn(2, 9), torch.arange(2))])
    with pytest.raises(InputError, match="one number"):
        prune(model, name, loss=lambda outputs, labels: outputs)
    assert list(model.state_dict()) == before


def test_synflow_needs_an_input_shape_only():
    with pytest.raises(IsoflopError, match="example_inputs="):
        prune(small_net(), "synflow", example_inputs=None)
    prune(small_net(), SynFlow(rounds=3), batches=None, loss=None)
    with pytest.raises(InputError, match="example_inputs"):
        prune(small_net(), "synflow", example_inputs=(1, 5, 6, 6))


def collapsing():
    """A network whose second layer lets hardly anything through, back and forth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 12))
    with torch.no_grad():
        model.get_parameter("1.weight").mul_(1e-4)
        model.get_parameter("1.bias").normal_()
    return model


def test_collapse_is_floored_with_a_warning_or_refused():
    data = {"batches": [(torch.randn(9, 6), torch.arange(9) % 3)], "example_inputs": (1, 6)}
    options = {"sparsity": 0.8, **data}
    with pytest.warns(LayerCollapseWarning, match=r"in '0\.weight', '1\.weight'\."):
        sparsifier = prune(collapsing(), SNIP(), **options)
    assert sparsifier.nnz == {"0.weight": 6, "1.weight": 6, "2.weight": 17}
    with pytest.raises(BudgetError, match=r"'0\.weight', '1\.weight'.*min_per_output=1"):
        prune(collapsing(), SNIP(min_per_output=0), **options)
    with pytest.raises(BudgetError, match="min_per_output"):
        prune(small_net(), SNIP(min_per_output=6))
    with pytest.raises(IsoflopError, match="min_per_output"):
        SNIP(min_per_output=-1)


def test_zero_initialised_scales_are_scored_as_ones():
    torch.manual_seed(0)
    model = resnet8_digits(num_classes=4, base_width=8)
    scales = [m.last_norm for m in model.modules() if isinstance(m, BasicBlock)]
    assert len(scales) == 3
    for scale in scales:
        nn.init.ones_(scale.weight)
    opened = copy.deepcopy(model)
    for scale in scales:
        nn.init.zeros_(scale.weight)
    generator = torch.Generator().manual_seed(7)
    data = [(torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 4)]
    options = {"batches": data, "example_inputs": (1, 1, 8, 8)}
    closed = prune(model, "snip", **options)
    for scale in scales:
        assert not scale.weight.any()  # the model itself stays as it was initialised
    reference = prune(opened, "snip", **options)
    for key, mask in reference.masks.items():
        assert torch.equal(mask, closed.masks[key])


def test_scores_that_are_all_zero_are_warned_of():
    model = small_net()
    nn.init.zeros_(
        model.get_parameter("8.weight")
    )  # a head that starts at zero lets no gradient through
    with (
        pytest.warns(NoEffectWarning, match=r"'0\.weight', '4\.weight', '5\.weight', '8\.weight'"),
        pytest.warns(LayerCollapseWarning),
    ):
        prune(model, "snip")


def test_overflowing_scores_are_refused():
    with pytest.raises(IsoflopError, match="not finite"):
        prune(
            small_net(),
            "snip",
            batches=[(torch.full((5, 3, 6, 6), torch.inf), torch.arange(5))],
        )


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.filterwarnings("ignore::isoflop.errors.LayerCollapseWarning")
def test_the_flops_of_a_plan_are_met_to_a_millionth(name):
    make, shape = ZOO["cifar_resnet"]
    model, plan = isoflop.transform(make(), isoflop.SparseWide(0.75), example_inputs=shape)
    generator = torch.Generator().manual_seed(3)
    data = [(torch.randn(16, *shape[1:], generator=generator), torch.arange(16) % 4)]
    options = {"sparsity": None, "plan": plan, "batches": data, "example_inputs": shape}
    cls = METHODS.get(name)
    options_of = {field.name for field in dataclasses.fields(cls)}
    method = cls(**({"rounds": 5} if "rounds" in options_of else {}))
    sparsifier = prune(model, method, **options | {"dense_ends": True})
    solved = sparsifier.plan
    assert solved is not None
    assert abs(solved.relative_gap) <= 1e-6
    assert solved.macs == isoflop.profile(model, shape).macs
    assert {x.parameter: x.nnz for x in solved.sparse_layers} == sparsifier.nnz
    assert sparsifier.nnz != {x.parameter: x.nnz for x in plan.sparse_layers}
    assert solved.allocation == name


def test_rounds_are_repeated_until_they_agree_with_the_density_of_the_budget():
    torch.manual_seed(0)
    make, shape = ZOO["cifar_resnet"]
    model, plan = isoflop.transform(make(), isoflop.SparseWide(0.75), example_inputs=shape)
    data = [(torch.randn(16, *shape[1:]), torch.arange(16) % 4)]
    calls = []

    class Recorded(FORCE):
        def scores(self, scoring_model, masks):
            calls.append(sum(int(mask.sum()) for mask in masks))
            return super().scores(scoring_model, masks)

    options = {"sparsity": None, "plan": plan, "batches": data, "dense_ends": True}
    sparsifier = prune(model, Recorded(rounds=3), **options)
    total = sum(mask.numel() for mask in sparsifier.masks.values())
    assert calls[0] == total
    assert len(calls) % 2 == 1  # the first scores are those of the dense network, always
    assert len(calls) > 3
    # The last run assumed the density that it came to.
    density = sum(sparsifier.nnz.values()) / total
    kept_in_rounds = [round(density ** (t / 3) * total) for t in (1, 2)]
    assert calls[-2:] == pytest.approx(kept_in_rounds, rel=0.05)


def test_one_shot_methods_score_once_and_force_again_for_each_density():
    calls = []

    class Counted(FORCE):
        def scores(self, scoring_model, masks):
            calls.append([int(mask.sum()) for mask in masks])
            return super().scores(scoring_model, masks)

    prune(small_net(), Counted(rounds=3))
    assert len(calls) == 3  # without a plan, the density is known from the beginning
    calls.clear()
    prune(small_net(), Counted(rounds=1))
    assert len(calls) == 1


def test_rounds_are_reported(capsys):
    with messages(quiet=False):
        prune(small_net(), FORCE(rounds=3))
        prune(small_net(), "snip")
    told = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == [f"force: round {t} of 3" for t in (1, 2, 3)]
    with messages(quiet=True):
        prune(small_net(), FORCE(rounds=3))
    prune(small_net(), FORCE(rounds=3))
    assert capsys.readouterr().err == ""


class Checkpointed(nn.Module):
    """Runs its middle layer under checkpointing, re-entrant or not, or without."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.middle, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x).relu()
        if self.reentrant is None:
            return self.last(self.middle(x).tanh())
        middle = checkpoint(lambda x: self.middle(x).tanh(), x, use_reentrant=self.reentrant)
        return self.last(middle)


def score(model, method, loss=F.cross_entropy):
    torch.manual_seed(0)
    data = [(torch.randn(8, 8), torch.arange(8) % 4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"sparsity": 0.5, "dense_ends": False, "total_steps": 9}
    return sparsify(
        model, optimizer, method, **sparsify_arguments(model, batches=data, loss=loss, **options)
    ).masks


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_models_are_scored_alike(name, reentrant):
    expected = score(Checkpointed(None), name)
    model = Checkpointed(reentrant)
    if reentrant and name == "grasp":
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(InputError, match="use_reentrant=False"):
            score(model, name)
        assert list(model.state_dict()) == list(before)
        return
    for weight, mask in score(model, name).items():
        assert torch.equal(mask, expected[weight])
    assert all(p.grad is None for p in model.parameters())


def square_function(kind):
    """Return x² as a function of its own, whose gradient is computed in one way or another."""

    class Squared(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            if kind == "numpy":
                return torch.from_numpy(2 * x.detach().numpy() * grad.detach().numpy())
            if kind == "no_grad":
                with torch.no_grad():
                    return 2 * x * grad
            return 2 * x * grad

    if kind == "once_differentiable":
        once: Any = staticmethod(once_differentiable(Squared.backward))
        Squared.backward = once
    return Squared.apply


class Activated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("kind", ["twice", "once_differentiable", "numpy", "no_grad"])
def test_functions_without_a_second_derivative(name, kind):
    model = Activated(square_function(kind))
    if name == "grasp" and kind != "twice":
        with pytest.raises(
            InputError, match="the autograd function 'Squared' has a first derivative"
        ):
            score(model, name)
        return
    expected = score(Activated(torch.square), name)
    for weight, mask in score(model, name).items():
        assert torch.equal(mask, expected[weight])


@pytest.mark.parametrize("name", CALIBRATED)
def test_gradients_that_are_zero_have_second_derivatives(name):
    class Stopped(Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.zeros(8, 16)

    expected = score_quietly(Activated(torch.detach), name)
    for weight, mask in score_quietly(Activated(Stopped.apply), name).items():
        assert torch.equal(mask, expected[weight])


def score_quietly(model, name):
    with pytest.warns(NoEffectWarning, match="All scores of 'first.weight' are exactly zero"):
        return score(model, name)


def test_synflow_in_a_type_that_code_fixes():
    def plainly(x):
        return x.square()

    def in_float(x):
        return x.float().square()

    masks = []
    for activation in (plainly, in_float):
        model = Activated(activation)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"sparsity": 0.5, "dense_ends": False, "total_steps": 9}
        few = SynFlow(rounds=3)
        masks.append(
            sparsify(
                model, optimizer, few, **sparsify_arguments(model, example_inputs=(1, 8), **options)
            ).masks
        )
    assert all(torch.equal(mask, masks[1][weight]) for weight, mask in masks[0].items())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, _: None, "returned NoneType"),
        (lambda outputs, _: 3.0, "returned float"),
        (lambda outputs, _: outputs.square(), r"returned Tensor of shape \(8, 4\)"),
        (lambda outputs, _: outputs.detach().sum(), "cannot be differentiated"),
        (lambda outputs, _: outputs.sum() * torch.nan, "not finite"),
        (lambda outputs, _: outputs.logits, "cannot be computed: AttributeError"),
    ],
)
@pytest.mark.parametrize("name", ["snip", "force"])
def test_losses_that_cannot_be_scored_are_refused(name, loss, message):
    model = Checkpointed(None)
    with pytest.raises(IsoflopError, match=message):
        score(model, name, loss)
    assert len(model.state_dict()) == 6


def test_parameters_of_the_loss_get_no_gradient():
    head = nn.Linear(4, 4)
    score(Checkpointed(None), "snip", lambda outputs, y: F.cross_entropy(head(outputs), y))
    assert head.weight.grad is None
    head.weight.grad = given = torch.ones(4, 4)
    score(Checkpointed(None), "snip", lambda outputs, y: F.cross_entropy(head(outputs), y))
    assert head.weight.grad is given
