import pytest
import torch
from torch import nn

from isoflop.methods import SET, RigL, SETOriginal
from isoflop.patterns import Unstructured
from isoflop.sparsity import plain_plan
from isoflop.sparsity.api import sparsify


def test_set_drops_by_magnitude():
    # The original SET would drop 0.01 and -0.5: the smallest of each sign.
    weight = torch.tensor([0.01, 0.02, 0.03, 1, -0.5, -0.6, -0.7, -0.8])
    mask = torch.ones(8, dtype=torch.bool)
    survivors = Unstructured().top(SET().drop_scores(weight, mask), 6, mask)
    assert survivors.tolist() == [False, False] + [True] * 6


@pytest.mark.parametrize(
    ("method", "dropped"),
    [(SETOriginal(alpha=0.25), [0, 4]), (SET(alpha=0.25), [0, 1])],
)
def test_the_original_drops_the_smallest_of_each_sign(method, dropped):
    # One in four of the positive weights and one in four of the negative ones.
    weight = torch.tensor([0.01, 0.02, 0.03, 1, -0.5, -0.6, -0.7, -0.8, 0, 0])
    mask = weight != 0
    count = method.drop_count(weight, mask, 8, 0.25)
    assert count == 2
    survivors = Unstructured().top(method.drop_scores(weight, mask), 8 - count, mask)
    assert (mask & ~survivors).nonzero().flatten().tolist() == dropped


def test_the_original_drops_as_many_of_each_sign_as_its_share():
    weight = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, -0.1, -0.2, 0])
    mask = torch.ones(10, dtype=torch.bool)
    method = SETOriginal(alpha=0.5)
    # Of eight that are not negative, four: the zero and 1, 2, 3; of two negative ones, one.
    assert method.drop_count(weight, mask, 10, 0.5) == 5
    survivors = Unstructured().top(method.drop_scores(weight, mask), 5, mask)
    assert (~survivors).nonzero().flatten().tolist() == [0, 1, 2, 7, 9]


def test_the_original_is_constant_and_skips_the_last_epoch():
    method = SETOriginal(update_every=5)
    assert [t for t in range(1, 21) if method.update_due(t, 20)] == [5, 10, 15]
    assert {method.drop_fraction(t, 20) for t in (5, 10, 15)} == {0.3}


@pytest.fixture
def example():
    """One layer in the state of the worked example, one step before an update of half of it."""
    model = nn.Linear(8, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    method = RigL(alpha=0.5, update_every=1, end_fraction=1.0, schedule="constant")
    sparsifier = sparsify(
        model, optimizer, method, plain_plan(model, 0.5, dense_ends=False), total_steps=2, seed=0
    )
    mask = torch.tensor([[True] * 4 + [False] * 4])
    sparsifier.masks["weight"].copy_(mask)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, -0.2, 0.3, 0.4, 0, 0, 0, 0]]))
    grad = torch.tensor([[9.0, 0, 0, 0, 1, -5, 2, 0]])
    return model, optimizer, sparsifier, grad


def test_rigl_worked_example(example):
    model, optimizer, sparsifier, grad = example
    (model.weight * grad).sum().backward()
    optimizer.step()
    mask = sparsifier.masks["weight"]
    assert mask.nonzero()[:, 1].tolist() == [0, 2, 3, 5]
    # Dropped and regrown: value and momentum stay. New: both are zero.
    assert model.weight[0, 0].item() == pytest.approx(0.1 - 9e-6)
    momentum = optimizer.state[model.weight]["momentum_buffer"]
    assert momentum[0].tolist() == [9, 0, 0, 0, 0, 0, 0, 0]
    assert model.weight[0, 5] == 0
    assert model.weight[0, 1] == 0
    assert sparsifier.history == [
        {"step": 1, "fraction": 0.5, "new": {"weight": 1}, "skipped": False}
    ]


def test_rigl_takes_the_accumulated_gradient(example):
    model, optimizer, sparsifier, grad = example
    for part in (grad + 7, -7 * torch.ones_like(grad)):  # only the sum points to position 5
        (model.weight * part).sum().backward()
    optimizer.step()
    assert sparsifier.masks["weight"].nonzero()[:, 1].tolist() == [0, 2, 3, 5]


def test_rigl_grows_what_reduces_the_loss():
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    y = x[:, :4] @ torch.tensor([1.0, -2.0, 3.0, -1.5])
    model = nn.Linear(16, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = sparsify(
        model,
        optimizer,
        RigL(update_every=5, alpha=0.5),
        plain_plan(model, 0.5, dense_ends=False),
        total_steps=200,
    )
    for _ in range(200):
        optimizer.zero_grad()
        (model(x).squeeze() - y).square().mean().backward()
        optimizer.step()
    assert sparsifier.masks["weight"][0, :4].all()
    assert (model(x).squeeze() - y).square().mean() < 1e-4


class TwoCalls(torch.optim.Optimizer):
    """An optimizer that evaluates its closure twice, as a line search does."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        assert closure is not None
        closure()
        return closure()


def test_rigl_takes_the_gradient_of_the_first_closure_call():
    model = nn.Linear(8, 1, bias=False)
    optimizer = TwoCalls(model.parameters())
    method = RigL(alpha=1.0, update_every=1, end_fraction=1.0, schedule="constant")
    sparsifier = sparsify(
        model, optimizer, method, plain_plan(model, 0.75, dense_ends=False), total_steps=2
    )
    grads = iter(torch.tensor([[0.0, 0, 0, 0, 0, 0, 1, 2], [3, 4, 0, 0, 0, 0, 0, 0]]))

    def closure():
        optimizer.zero_grad()
        loss = (model.weight * next(grads)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert sparsifier.masks["weight"].nonzero()[:, 1].tolist() == [6, 7]
