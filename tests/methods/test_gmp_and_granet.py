import pytest
import torch
from tests.budgets import sparsify_arguments
from tests.zoo import ZOO
from torch import nn

from isoflop import SparseWide, profile, transform
from isoflop.errors import BudgetError, IsoflopError
from isoflop.methods import GMP, GraNet
from isoflop.sparsity import reallocate
from isoflop.sparsity.api import sparsify


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10))


def train(model, optimizer, steps):
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 10, generator=generator)).square().mean().backward()
        optimizer.step()


def make(method, **options):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"sparsity": 0.9, "dense_ends": False, "total_steps": 8} | options
    return (
        model,
        optimizer,
        sparsify(model, optimizer, method, **sparsify_arguments(model, **options)),
    )


def test_gmp_prunes_each_layer_to_the_ramp():
    method = GMP(pruning_end=1.0, update_every=2)
    model, optimizer, sparsifier = make(method)
    assert sparsifier.density() == 1
    for after in ([0.52031] * 2, [0.7875] * 2, [0.88594] * 2, [0.9] * 2):
        before = {k: (m.clone(), model.get_parameter(k).abs()) for k, m in sparsifier.masks.items()}
        train(model, optimizer, 2)
        for (name, mask), sparsity in zip(sparsifier.masks.items(), after, strict=True):
            assert abs(int((~mask).sum()) - 200 * sparsity) <= 1
            old, _ = before[name]
            assert not (mask & ~old).any()  # nothing grows
    assert sparsifier.nnz == {"0.weight": 20, "2.weight": 20}
    assert all(sum(entry["pruned"].values()) > 0 for entry in sparsifier.history)


def test_gmp_prunes_the_smallest_weights():
    method = GMP(pruning_end=1.0, update_every=1)
    model, optimizer, sparsifier = make(method, sparsity=0.5, total_steps=2)
    optimizer.param_groups[0]["lr"] = 0.0
    weights = {name: model.get_parameter(name).detach().abs() for name in sparsifier.masks}
    train(model, optimizer, 2)
    for name, mask in sparsifier.masks.items():
        assert weights[name][mask].min() >= weights[name][~mask].max()


def test_granet_prunes_by_one_threshold_and_regrows():
    method = GraNet(update_every=1, pruning_end=1.0, alpha=0.2, schedule="constant")
    model, optimizer, sparsifier = make(method, sparsity=0.8, total_steps=4)
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(0.05)
    optimizer.param_groups[0]["lr"] = 0.0
    assert sum(sparsifier.nnz.values()) == 200
    train(model, optimizer, 1)
    # One layer's weights are far smaller, so it loses all that its outputs can spare.
    assert sparsifier.history[0]["pruned"]["2.weight"] > sparsifier.history[0]["pruned"]["0.weight"]
    nnz = dict(sparsifier.nnz)
    assert sum(nnz.values()) == round(80 + 120 * 27 / 64)
    assert sum(sparsifier.history[0]["new"].values()) > 0


def test_granet_uniform_prunes_each_layer_alike():
    method = GraNet(update_every=1, pruning_end=1.0, per_layer=True)
    model, optimizer, sparsifier = make(method, sparsity=0.8, total_steps=4)
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(0.05)
    for expected in (131, 95, 82):
        train(model, optimizer, 1)
        assert sum(sparsifier.nnz.values()) == expected
        first, second = sparsifier.nnz.values()
        assert abs(first - second) <= 1
    # The last pruning follows the last step.
    train(model, optimizer, 1)
    assert sum(sparsifier.nnz.values()) == 80


def test_regeneration_anneals_over_the_whole_training():
    method = GraNet()
    assert method.drop_fraction(0, 1000) == 0.5
    assert method.drop_fraction(500, 1000) == pytest.approx(0.2525)
    assert method.drop_fraction(1000, 1000) == 0.005
    weight = torch.zeros(1)
    assert method.drop_count(weight, weight > 0, 101, 0.25) == 26
    due = [t for t in range(10_001) if method.update_due(t, 10_000)]
    assert due == list(range(1000, 10_000, 1000))


@pytest.mark.parametrize(
    "method",
    [
        GMP(update_every=5),
        GMP(update_every=3, pruning_begin=0.1, pruning_end=0.3),
        GraNet(update_every=4),
        GraNet(update_every=4, per_layer=True, initial_density=0.6),
        GraNet(update_every=7, pruning_end=0.4),
    ],
)
@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_a_plan_is_met_on_average_over_the_steps(method, allocation):
    make, shape = ZOO["cifar_resnet"]
    model, plan = transform(make(), SparseWide(0.75), example_inputs=shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsify(model, optimizer, method, reallocate(plan, allocation), total_steps=40)
    macs = []
    for _ in range(40):
        macs.append(profile(model, shape).macs)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    assert abs(sum(macs) / 40 - plan.dense_macs) <= 1e-6 * plan.dense_macs
    assert macs[0] > plan.dense_macs > macs[-1]
    assert macs == sorted(macs, reverse=True)


def test_budgets_that_no_ramp_meets_are_refused_before_anything_changes():
    make, shape = ZOO["cifar_resnet"]
    model, plan = transform(make(), SparseWide(0.9), example_inputs=shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = list(model.state_dict())
    with pytest.raises(BudgetError, match="initial_density below"):
        sparsify(model, optimizer, GMP(), plan, total_steps=1000)
    with pytest.raises(BudgetError, match="smaller update_every"):
        sparsify(model, optimizer, GraNet(), plan, total_steps=100)
    with pytest.raises(BudgetError, match="nothing to prune"):
        refused()
    assert list(model.state_dict()) == before
    sparsify(model, optimizer, GMP(pruning_end=0.2, update_every=10), plan, total_steps=1000)


def refused():
    make(GraNet(update_every=1, initial_density=0.1), sparsity=0.5, total_steps=10)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GMP(initial_density=0.0),
        lambda: GMP(pruning_begin=-0.1),
        lambda: GMP(pruning_end=1.5),
        lambda: GMP(update_every=0),
        lambda: GraNet(alpha_end=2.0),
        lambda: GraNet(initial_density=0),
        lambda: GraNet(pruning_end=float("nan")),
    ],
)
def test_bad_options(wrong):
    with pytest.raises(IsoflopError):
        wrong()
