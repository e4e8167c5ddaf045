"""What trains sparse weights without their sparsifier is noticed, and nothing else is taken for it."""

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from tests.budgets import sparsify_arguments
from torch import nn
from torch.nn.utils import parametrizations, prune

import isoflop
from isoflop.errors import IsoflopError, NoEffectWarning, OptimizerError

STORAGES = ["masked", "compressed"]


def make(method="rigl", *, storage: Any = "masked", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = isoflop.RigL(update_every=2) if method == "rigl" else method
    options = {"sparsity": 0.8, "dense_ends": False, "total_steps": 400, **options}
    return (
        model,
        optimizer,
        isoflop.sparsify(
            model, optimizer, method, storage=storage, **sparsify_arguments(model, **options)
        ),
    )  # pyright: ignore[reportArgumentType]


def backward(model, optimizer=None):
    model.zero_grad()
    model(torch.randn(8, 32)).square().mean().backward()
    if optimizer is not None:
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_another_optimizer_is_refused_at_its_first_step(storage, steps):
    model, optimizer, sparsifier = make(storage=storage)
    for _ in range(steps):
        backward(model, optimizer)
    other = torch.optim.AdamW(model.parameters())
    other.load_state_dict(other.state_dict())
    backward(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(OptimizerError, match=r"This AdamW trains '0.weight'.*remove\(\)"):
        other.step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    backward(model, optimizer)
    assert sparsifier.step == steps + 1


def test_another_optimizer_is_refused_when_the_first_is_gone():
    model, optimizer, sparsifier = make()
    backward(model, optimizer)
    del optimizer, sparsifier
    gc.collect()
    backward(model)
    with pytest.raises(OptimizerError, match=r"'0.weight'"):
        sgd(model).step()


def test_training_after_removal_is_warned_of_once():
    model, optimizer, sparsifier = make()
    sparsifier.remove()
    backward(model)
    with pytest.warns(NoEffectWarning, match=r"'0.weight'.*removed.*become dense"):
        optimizer.step()
    backward(model, optimizer)


def test_another_optimizer_goes_on_with_the_masks():
    model, optimizer, sparsifier = make()
    for _ in range(3):
        backward(model, optimizer)
    masks = sparsifier.masks
    other = sgd(model)
    with pytest.raises(IsoflopError, match=r"masked already"):
        isoflop.sparsify(model, other, "static", masks, total_steps=5)
    sparsifier.remove()
    again = isoflop.sparsify(model, other, "static", masks, total_steps=5)
    for _ in range(3):
        backward(model, other)
    assert all(torch.equal(masks[name], mask) for name, mask in again.masks.items())
    assert int(model[0].weight.count_nonzero()) == again.nnz["0.weight"]  # pyright: ignore[reportCallIssue]


class Lookahead(torch.optim.Optimizer):
    """As in timm: a wrapper whose step calls no hooks."""

    def __init__(self, base):
        self.base, self.param_groups, self.state = base, base.param_groups, base.state
        self._optimizer_step_pre_hooks = {}
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def step(self, closure=None):
        self.base.step(closure)
        for slow, p in zip(
            self.slow, (p for g in self.param_groups for p in g["params"]), strict=True
        ):
            slow.add_(p.data - slow, alpha=0.5)
            p.data.copy_(slow)


class Sam(torch.optim.Optimizer):
    """A wrapper whose step calls hooks, and those of the optimizer inside."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.base, self.param_groups = base, base.param_groups

    def step(self, closure=None):
        return self.base.step(closure)


def test_wrappers_that_step_by_the_optimizer_are_let_through():
    model, optimizer, sparsifier = make()
    for wrapper in (Sam(optimizer), torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)):
        backward(model, optimizer if not isinstance(wrapper, Sam) else wrapper)
    assert sparsifier.step == 2


def test_optimizers_whose_step_calls_no_hooks_are_refused():
    model = nn.Linear(8, 8)
    wrapper = Lookahead(sgd(model))
    with pytest.raises(OptimizerError, match=r"Lookahead.*before any wrapper"):
        isoflop.sparsify(
            model, wrapper, "rigl", isoflop.plain_plan(model, 0.5, dense_ends=False), total_steps=9
        )


def test_weights_that_leak_through_data_are_noticed():
    model, optimizer, _ = make()
    wrapper = Lookahead(optimizer)
    for _ in range(100):
        backward(model, wrapper)
    with pytest.raises(IsoflopError, match=r"mask excludes are not zero.*Lookahead"):
        backward(model, wrapper)


def test_a_stranger_of_other_parameters_is_nobodys_business():
    model, optimizer, _ = make()
    head = nn.Linear(4, 2)
    other = sgd(head)
    head(model(torch.randn(8, 32))).sum().backward()
    optimizer.step()
    other.step()
    copied = nn.Linear(32, 32)
    backward(nn.Sequential(copied), sgd(copied))


@pytest.mark.parametrize("how", ["parameter", "data", "in place", "state", "manual"])
def test_weights_that_others_change_are_noticed(how):
    model, optimizer, _ = make("static")
    backward(model, optimizer)
    weight = model[2].weight
    with torch.no_grad():
        if how == "parameter":
            model[2].weight = nn.Parameter(torch.randn(32, 32))
        elif how == "data":
            weight.data = torch.randn(32, 32)
        elif how == "in place":
            weight.add_(1.0)  # pyright: ignore[reportCallIssue]
        elif how == "state":
            model.load_state_dict({"2.weight": torch.randn(32, 32)}, strict=False)
        else:
            weight -= 0.1 * torch.randn(32, 32)  # pyright: ignore[reportOperatorIssue]
    with pytest.raises(IsoflopError, match=r"'2.weight'"):
        backward(model, optimizer)
    if how in ("data", "in place", "state", "manual"):
        isoflop.apply_masks(model)
        backward(model, optimizer)


def test_weights_that_stay_sparse_may_change():
    model, optimizer, sparsifier = make("static")
    backward(model, optimizer)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    backward(model, optimizer)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(kept[name])
    backward(model, optimizer)
    model.load_state_dict(model.state_dict())
    backward(model, optimizer)
    model.double().float()
    backward(model, optimizer)
    assert sparsifier.step == 5


def test_parameters_taken_from_the_groups_are_noticed():
    model, optimizer, _ = make()
    group = optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if p is not model[2].weight]
    with pytest.raises(OptimizerError, match=r"no longer trains '2.weight'"):
        backward(model, optimizer)
    model[2].weight.requires_grad_(False)  # frozen on purpose
    model.zero_grad()
    backward(model, optimizer)


def test_training_by_hand_is_warned_of():
    model, _optimizer, sparsifier = make("static")
    for _ in range(63):
        backward(model)
        for p in model.parameters():
            p.data -= 0.1 * p.grad  # pyright: ignore[reportOperatorIssue]
    with pytest.warns(NoEffectWarning, match=r"no step in 64 backward passes"):
        backward(model)
    for _ in range(130):  # gradients alone are looked at by many
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            backward(model)
    assert sparsifier.step == 0


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore")),
    ],
)
def test_weights_that_become_computed_are_named(change):
    model, optimizer, sparsifier = make()
    backward(model, optimizer)
    change(model[2])
    with pytest.raises(IsoflopError, match=r"'2.weight' is no parameter any more.*exclude"):
        backward(model, optimizer)
    with pytest.raises(IsoflopError, match=r"'2.weight' is no parameter any more"):
        sparsifier.density()


@pytest.mark.parametrize("storage", STORAGES)
def test_the_density_of_another_state_is_told_and_refused(storage):
    model, optimizer, sparsifier = make("static", storage=storage)
    denser, _, other = make("static", storage=storage, sparsity=0.5)
    model.load_state_dict(denser.state_dict())
    assert sparsifier.density() == other.density() == 0.5
    assert sparsifier.nnz == other.nnz
    with pytest.raises(IsoflopError, match=r"keep 512 weights of '0.weight' in place of 205"):
        backward(model, optimizer)


def test_models_of_the_middle_of_a_ramp_are_loaded_in_either_order():
    method = isoflop.GMP(update_every=2)
    model, optimizer, sparsifier = make(method, total_steps=20)  # pyright: ignore[reportArgumentType]
    for _ in range(6):
        backward(model, optimizer)
    states = model.state_dict(), sparsifier.state_dict()
    for first in (0, 1):
        model, optimizer, again = make(method, total_steps=20)  # pyright: ignore[reportArgumentType]
        loads = [model.load_state_dict, again.load_state_dict]
        loads[first](states[first])
        loads[1 - first](states[1 - first])
        backward(model, optimizer)
        assert again.step == 7
        assert again.density() == sparsifier.density()


def test_steps_past_the_end_are_warned_of_once():
    model, optimizer, _ = make(total_steps=6)
    for _ in range(6):
        backward(model, optimizer)
    backward(model)
    with pytest.warns(NoEffectWarning, match=r"Step 7 is past the total_steps=6"):
        optimizer.step()
    backward(model, optimizer)
    model, optimizer, _ = make("static", total_steps=1)
    for _ in range(3):
        backward(model, optimizer)


def test_guards_are_freed():
    model, optimizer, sparsifier = make()
    backward(model, optimizer)
    reference = weakref.ref(sparsifier._guard)
    del model, optimizer, sparsifier
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("method", "steps", "numbers"),
    [
        (isoflop.RigL(), 50, "follow step 100 .* end before step 37.5"),
        (isoflop.RigL(), 100, "follow step 100 .* end before step 75"),
        (isoflop.RigL(end_fraction=0), 1000, "end before step 0"),
        (isoflop.RigL(alpha=0.001), 1000, "0.000957 of a layer's weights"),
        (isoflop.SET(), 100, "follow step 100"),
        (isoflop.SETOriginal(), 390, "follow step 391"),
        (isoflop.SNFS(), 391, "follow step 391"),
    ],
)
def test_schedules_without_an_update_are_warned_of(method, steps, numbers):
    with pytest.warns(NoEffectWarning, match=f"{method.name!r} will never change.*{numbers}"):
        make(method, total_steps=steps)


@pytest.mark.parametrize("method", ["rigl", "static", "gmp", "granet", "sr_ste", "set"])
def test_schedules_with_an_update_are_not(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(method, total_steps=5000)
