import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.budgets import sparsify_arguments
from tests.zoo import ZOO
from torch import nn

from isoflop import SparseWide, transform
from isoflop.methods import SNFS
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.update import _divide


def test_momentum_is_an_average_of_dense_gradients():
    method = SNFS(momentum=0.5)
    memory = None
    for value in (1.0, 3.0):
        memory = method.remember(memory, torch.tensor([value]))
    assert memory.tolist() == [1.75]


def test_the_dense_gradient_is_observed_until_the_last_update():
    for method, total in ((SNFS(update_every=4), 10), (SNFS(update_every=5), 10)):
        due = [t for t in range(1, 11) if method.update_due(t, total)]
        observed = [t for t in range(1, 11) if method.observes(t, total)]
        assert observed == list(range(1, due[-1] + 1))
    assert not SNFS(update_every=20).observes(1, 10)
    assert not SNFS(end_fraction=0.0).observes(1, 10)


@pytest.fixture
def two_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"sparsity": 0.6, "dense_ends": False, "total_steps": 10}
    return model, optimizer, options


def step(model, optimizer, sizes):
    for module, size in zip(model, sizes, strict=True):
        module.weight.grad = torch.full_like(module.weight, size)
    optimizer.step()


def test_growth_is_divided_by_mean_momentum(two_layers):
    model, optimizer, options = two_layers
    method = SNFS(update_every=2, alpha=0.5, schedule="constant")
    sparsifier = sparsify(model, optimizer, method, **sparsify_arguments(model, **options))
    for _ in range(2):
        step(model, optimizer, (1.0, -3.0))
    # 20 of 40 weights are dropped in each, and 40 are grown at 1 : 3.
    assert sparsifier.nnz == {"0.weight": 20 + 10, "1.weight": 20 + 30}
    assert [int(mask.sum()) for mask in sparsifier.masks.values()] == [30, 50]


def test_what_a_full_layer_cannot_take_others_get(two_layers):
    model, optimizer, options = two_layers
    method = SNFS(update_every=1, alpha=1.0, schedule="constant")
    sparsifier = sparsify(
        model, optimizer, method, **sparsify_arguments(model, **options | {"sparsity": 0.3})
    )
    step(model, optimizer, (1.0, 1e6))
    assert sparsifier.nnz == {"0.weight": 40, "1.weight": 100}


def test_without_redistribution_layers_keep_their_counts(two_layers):
    model, optimizer, options = two_layers
    method = SNFS(update_every=1, redistribute=False)
    sparsifier = sparsify(model, optimizer, method, **sparsify_arguments(model, **options))
    step(model, optimizer, (1.0, 3.0))
    assert sparsifier.nnz == {"0.weight": 40, "1.weight": 40}


def test_the_flops_of_a_plan_hold_after_every_update():
    make, shape = ZOO["cifar_resnet"]
    model, plan = transform(make(), SparseWide(0.75), example_inputs=shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = sparsify(model, optimizer, SNFS(update_every=1), plan, total_steps=6)
    first = dict(sparsifier.nnz)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 2.0 ** (i % 7)
        optimizer.step()
        assert sparsifier.plan is not None
        assert abs(sparsifier.plan.relative_gap) <= 1e-6
    assert sparsifier.nnz != first


part = st.sampled_from([0.0, 1e-9, 0.5, 1.0, 3.0])
layers = st.lists(
    st.tuples(st.integers(1, 9), part, st.integers(0, 50)),
    min_size=1,
    max_size=6,
)


@given(layers, st.floats(0, 1))
def test_division_spends_all_where_there_is_room(case, part):
    prices, shares, room = map(list, zip(*case, strict=True))
    wanted = [share > 0 for share in shares]
    most = sum(p * r for p, r, w in zip(prices, room, wanted, strict=True) if w)
    cost = int(part * most)
    found = _divide(cost, prices, shares, room)
    assert all(0 <= n <= r + 1e-9 for n, r in zip(found, room, strict=True))
    total = sum(n * p for n, p in zip(found, prices, strict=True))
    assert total == pytest.approx(cost, rel=1e-9, abs=1e-9)
