import copy
import dataclasses
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from tests.budgets import sparsify_arguments
from torch import nn

from isoflop.errors import (
    BudgetError,
    InputError,
    IsoflopError,
    NoTransformableLayersError,
    OptimizerError,
    PlanError,
    UnknownNameError,
)
from isoflop.masks import get_mask, remove_mask
from isoflop.methods import GMP, Dense, RigL, Static
from isoflop.methods.base import Method
from isoflop.patterns import Unstructured
from isoflop.plan import LayerPlan, Plan
from isoflop.sparsity import plain_plan
from isoflop.sparsity.allocation import er
from isoflop.sparsity.api import sparsify


class Net(nn.Module):
    """A network whose layers are not defined in the order in which the data reaches them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6, bias=False)])
        self.stem = nn.Conv1d(2, 6, 3)
        self.up = nn.ConvTranspose1d(6, 6, 3)
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        x = self.up(self.stem(x)).mean(-1)
        for layer in self.body:
            x = self.norm(layer(x).relu())
        return self.head(x)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make(model: nn.Module | None = None, method: Method | str = "static", **options: Any):
    torch.manual_seed(0)
    model = Net() if model is None else model
    options = {"total_steps": 100, **options}
    if "plan" not in options and method != "dense":
        options = {"sparsity": 0.5, **options}
    return model, sparsify(model, sgd(model), method, **sparsify_arguments(model, **options))


def layer(name, model, nnz=None, kind="sparse"):
    weight = model.get_parameter(name)
    return LayerPlan(
        parameter=name,
        source=name.rpartition(".")[0],
        kind=kind,
        dense_shape=tuple(weight.shape),
        shape=tuple(weight.shape),
        nnz=weight.numel() if nnz is None else nnz,
        macs_per_weight=1,
        source_macs=weight.numel(),
    )


def plan_for(model, allocation="uniform"):
    layers = (
        layer("stem.weight", model, kind="dense"),
        layer("up.weight", model, nnz=31),
        layer("body.0.weight", model, nnz=11),
        layer("body.1.weight", model, nnz=5),
        layer("head.weight", model, kind="dense"),
    )
    macs = sum(each.nnz for each in layers)
    return Plan(
        transform="sparse_wide",
        config={},
        scope="model",
        dense_macs=macs,
        other_macs=0,
        layers=layers,
        allocation=allocation,
    )


def snapshot(model, optimizer):
    hooks = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    hooks += sum(bool(p._post_accumulate_grad_hooks) for p in model.parameters())
    return copy.deepcopy(model.state_dict()), hooks


# Which weights, and how many of each


def test_ends_follow_the_order_of_definition_without_inputs():
    _, sparsifier = make()
    assert list(sparsifier.masks) == ["body.0.weight", "body.1.weight", "stem.weight"]


def test_ends_follow_the_data_with_inputs():
    _, sparsifier = make(example_inputs=(1, 2, 8))
    assert list(sparsifier.masks) == ["body.0.weight", "body.1.weight", "up.weight"]


def test_ends_can_be_masked_too():
    _, sparsifier = make(dense_ends=False, example_inputs=(1, 2, 8))
    assert len(sparsifier.masks) == 5


@pytest.mark.parametrize("exclude", ["body.0", ["body.?", "up"], ["body"], ("*",)])
def test_exclude(exclude):
    if "*" in exclude:
        with pytest.raises(NoTransformableLayersError, match="5 are excluded"):
            make(dense_ends=False, exclude=exclude)
        return
    _, sparsifier = make(dense_ends=False, exclude=exclude)
    assert "body.0.weight" not in sparsifier.masks
    assert ("body.1.weight" in sparsifier.masks) == (exclude == "body.0")
    assert ("up.weight" in sparsifier.masks) == ("up" not in exclude)


@pytest.mark.parametrize("method", [Dense(), RigL(), Static()], ids=lambda method: method.name)
def test_exclude_that_matches_nothing(method):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(IsoflopError, match=r"'bodi' matches no module.*body\.0"):
        sparsify(model, optimizer, method, 0.0, exclude="bodi", total_steps=4000)
    assert get_mask(model.get_submodule("body.0")) is None


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk", er])
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.5, 0.57, 0.9])
def test_the_overall_number_of_zeros_is_exact(allocation, sparsity):
    model, sparsifier = make(sparsity=sparsity, dense_ends=False, allocation=allocation)
    numel = sum(mask.numel() for mask in sparsifier.masks.values())
    assert sum(sparsifier.nnz.values()) == numel - math.floor(sparsity * numel + 1e-9)
    assert sparsifier.density() == sum(sparsifier.nnz.values()) / numel
    for name, mask in sparsifier.masks.items():
        assert int(mask.sum()) == sparsifier.nnz[name]
        assert not model.get_parameter(name)[~mask].any()


def test_masks_are_buffers_beside_the_weight():
    model, sparsifier = make()
    assert model.state_dict()["body.0.weight_mask"].dtype == torch.bool
    assert get_mask(model.get_submodule("body.0")) is sparsifier.masks["body.0.weight"]
    assert get_mask(model.get_submodule("head")) is None


def test_masks_take_over_the_memory_layout():
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    _, sparsifier = make(model, dense_ends=False)
    assert sparsifier.masks["weight"].is_contiguous(memory_format=torch.channels_last)


def test_optimizer_state_of_an_earlier_training_is_masked_at_once():
    model = Net()
    optimizer = sgd(model)
    model(torch.randn(4, 2, 8)).square().sum().backward()
    optimizer.step()
    sparsifier = sparsify(model, optimizer, "static", 0.5, total_steps=5)
    for name, mask in sparsifier.masks.items():
        momentum = optimizer.state[model.get_parameter(name)]["momentum_buffer"]
        assert momentum[mask].any()
        assert not momentum[~mask].any()


def test_nested_optimizer_state_is_masked():
    model = nn.Linear(4, 4)
    optimizer = sgd(model)
    optimizer.state[model.weight] = {"history": [torch.ones(4, 4), (torch.ones(4, 4),)], "n": 3}
    sparsifier = sparsify(
        model, optimizer, "static", plain_plan(model, 0.5, dense_ends=False), total_steps=5
    )
    first, (second,) = optimizer.state[model.weight]["history"]
    assert torch.equal(first.bool(), sparsifier.masks["weight"])
    assert torch.equal(second, first)


def test_tied_weights_are_masked_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[1].weight
    _, sparsifier = make(model, dense_ends=False)
    assert list(sparsifier.masks) == ["0.weight", "1.weight"]
    model2 = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model2[2].weight = model2[0].weight
    with pytest.raises(NoTransformableLayersError):  # both ends are one, and so is the other
        make(model2, exclude="1")


def test_a_weight_tied_to_an_embedding_stays_dense():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "mid": nn.Linear(4, 4)})
    model["head"] = nn.Linear(4, 9, bias=False)
    model["head"].weight = model["embed"].weight
    _, sparsifier = make(model, dense_ends=False)
    assert list(sparsifier.masks) == ["mid.weight"]


# Plans


def test_a_plan_is_obeyed_to_the_weight():
    model = Net()
    plan = plan_for(model)
    _, sparsifier = make(model, plan=plan)
    assert sparsifier.nnz == {"up.weight": 31, "body.0.weight": 11, "body.1.weight": 5}
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == sparsifier.nnz
    assert sparsifier.plan is plan
    assert sparsifier.density() == plan.density


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_the_allocation_of_a_plan_is_kept(allocation):
    model = Net()
    plan = plan_for(model, allocation)
    _, sparsifier = make(copy.deepcopy(model), plan=plan)
    assert sparsifier.plan is plan
    _, sparsifier = make(model, plan=plan, allocation=allocation)
    assert sparsifier.plan is plan


@pytest.mark.parametrize("allocation", ["er", er])
def test_another_allocation_than_the_plans_meets_the_same_flops(allocation):
    model = Net()
    plan = plan_for(model)
    _, sparsifier = make(model, plan=plan, allocation=allocation)
    assert sparsifier.plan is not None
    assert sparsifier.plan.allocation == "er"
    assert sparsifier.plan.macs == plan.macs
    assert sparsifier.nnz == {each.parameter: each.nnz for each in sparsifier.plan.sparse_layers}
    assert sparsifier.nnz != {each.parameter: each.nnz for each in plan.sparse_layers}


def test_dense_ignores_the_sparsity_of_a_plan():
    model = Net()
    _, sparsifier = make(model, "dense", plan=plan_for(model))
    assert sparsifier.masks == {}
    assert make(Net(), Dense())[1].masks == {}


# Life


def test_moving_and_casting_the_model_keeps_it_sparse():
    model, sparsifier = make(method=RigL(update_every=1))
    model.double()
    optimizer = sparsifier._optimizer
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 2, 8, dtype=torch.double)).square().sum().backward()
        optimizer.step()
    for name, mask in sparsifier.masks.items():
        assert int(mask.sum()) == sparsifier.nnz[name]
        assert not model.get_parameter(name)[~mask].any()
    assert len(sparsifier.history) == 3


def test_the_sparsifier_need_not_be_kept_but_is_freed_with_the_optimizer():
    model = Net()
    optimizer = sgd(model)
    reference = weakref.ref(
        sparsify(model, optimizer, "rigl", plain_plan(model, 0.5, dense_ends=False), total_steps=5)
    )
    gc.collect()
    assert reference() is not None
    for _ in range(2):
        model(torch.randn(4, 2, 8)).square().sum().backward()
        optimizer.step()
    assert not model.stem.weight[~model.get_buffer("stem.weight_mask")].any()
    model_reference = weakref.ref(model)
    del optimizer
    gc.collect()
    assert reference() is None
    model(torch.randn(4, 2, 8)).square().sum().backward()  # the hooks left behind do nothing
    del model
    gc.collect()
    assert model_reference() is None


def test_losing_a_mask_is_noticed():
    model, sparsifier = make()
    remove_mask(model.get_submodule("stem"))
    with pytest.raises(IsoflopError, match=r"sparsifier\.remove\(\)"):
        _ = sparsifier.masks


def test_a_model_can_be_sparsified_anew():
    model, sparsifier = make(dense_ends=False)
    with pytest.raises(IsoflopError, match=r"masked already, at 'head.weight'.*remove\(\)"):
        make(model)
    sparsifier.remove()
    for module in model.modules():
        remove_mask(module)
    make(model)


def test_whole_models_can_be_pickled(tmp_path):
    model, _ = make()
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert get_mask(loaded.stem) is not None


def test_fused_optimizers_skip_overflowed_updates_with_the_scaler():
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    method = RigL(update_every=1)
    sparsifier = sparsify(
        model, optimizer, method, plain_plan(model, 0.5, dense_ends=False), total_steps=9
    )
    mask = sparsifier.masks["weight"].clone()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(4, 8)).sum() * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(mask, sparsifier.masks["weight"])
    assert sparsifier.history == []
    assert sparsifier.step == 0
    assert model.weight.isfinite().all()


# State


def test_states_are_plain_data_and_independent(tmp_path):
    _, sparsifier = make(method=RigL(update_every=1))
    state = sparsifier.state_dict()
    assert state["step"] == 0
    assert state["method"] == "rigl"
    assert state["config"]["update_every"] == 1
    sparsifier.history.append({"step": 1})
    assert state["history"] == []
    torch.save(state, tmp_path / "state.pt")
    sparsifier.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert sparsifier.history == []


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("set", {}, "the method 'set', this one 'rigl'"),
        (RigL(alpha=0.1), {}, "the options .*'alpha': 0.1"),
        ("rigl", {"sparsity": 0.6}, "'body.0.weight'.*sparsity of the saved run"),
        ("rigl", {"exclude": "stem"}, "'stem.weight'"),
        ("rigl", {"total_steps": 50}, "total_steps 50, this one 100"),
        ("rigl", {"pattern": "2x2"}, "pattern '2x2', this one 'unstructured'"),
        ("rigl", {"allocation": "er"}, "another number of weights"),
        ("rigl", {"dense_ends": False}, "masked other layers"),
        ("rigl", {"example_inputs": (1, 2, 8), "dense_ends": False}, "masked other layers"),
    ],
)
def test_states_of_another_run_are_refused(method, options, message):
    _, sparsifier = make(method="rigl")
    before = sparsifier.state_dict()
    with pytest.raises(IsoflopError, match=message):
        sparsifier.load_state_dict(make(method=method, **options)[1].state_dict())
    assert str(sparsifier.state_dict()) == str(before)


def test_states_of_another_course_or_plan_are_refused():
    method = GMP(update_every=5)
    _, sparsifier = make(method=method)
    with pytest.raises(IsoflopError, match=r"another trajectory .* allocation"):
        sparsifier.load_state_dict({**sparsifier.state_dict(), "trajectory": [[1], [1.0], 1, 1]})
    _, sparsifier = make(dense_ends=False)
    other = make(dense_ends=False, example_inputs=(1, 2, 8))[1]
    with pytest.raises(IsoflopError, match=r"another count of MACs.*example_inputs"):
        sparsifier.load_state_dict(other.state_dict())
    state = sparsifier.state_dict()
    with pytest.raises(IsoflopError, match=r"another budget"):
        sparsifier.load_state_dict({**state, "prices": [2] * len(state["prices"])})


def test_states_of_earlier_versions_are_told_apart():
    _, sparsifier = make()
    state = sparsifier.state_dict()
    old = {key: state[key] for key in state.keys() - {"total_steps", "pattern", "macs"}}
    with pytest.raises(IsoflopError, match=r"earlier version, which did not note total_steps"):
        sparsifier.load_state_dict(old)
    sparsifier.load_state_dict({**sparsifier.state_dict(), **old})


def test_what_is_no_state_is_refused():
    _, sparsifier = make()
    with pytest.raises(IsoflopError, match="not NoneType"):
        sparsifier.load_state_dict(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(IsoflopError, match="method, config, storage"):
        sparsifier.load_state_dict({"step": 3})


# Mistakes. None may change anything.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "riggl"}, UnknownNameError, "Did you mean 'rigl'"),
        ({"method": RigL}, IsoflopError, r"Did you mean RigL\(\)"),
        ({"method": None}, IsoflopError, "'static'"),
        ({"pattern": "blocks"}, UnknownNameError, "Did you mean 'block'"),
        ({"pattern": Unstructured}, IsoflopError, r"Did you mean Unstructured\(\)"),
        ({"allocation": "random"}, UnknownNameError, "Known: uniform, er, erk"),
        ({"allocation": 3}, IsoflopError, "function of shapes and density"),
        ({"allocation": lambda shapes, density: [1.0] * len(shapes)}, BudgetError, "average"),
        ({"sparsity": None}, IsoflopError, r"\[0, 1\)"),
        ({"sparsity": 1.0}, IsoflopError, r"\[0, 1\)"),
        ({"sparsity": -0.1}, IsoflopError, r"\[0, 1\)"),
        ({"sparsity": math.nan}, IsoflopError, r"\[0, 1\)"),
        ({"sparsity": True}, IsoflopError, r"\[0, 1\)"),
        ({"sparsity": "0.5"}, IsoflopError, r"\[0, 1\)"),
        ({"sparsity": 0.9999}, BudgetError, "Lower the sparsity"),
        ({"total_steps": 0}, IsoflopError, "positive"),
        ({"total_steps": 10.0}, IsoflopError, "integer"),
        ({"total_steps": True}, IsoflopError, "integer"),
        ({"seed": "a"}, IsoflopError, "seed must be an integer"),
        ({"exclude": ["body.*", "bodi.*"]}, IsoflopError, r"'bodi\.\*' matches no .*head, body"),
        ({"example_inputs": (1, 7, 8)}, InputError, "Net cannot be traced"),
        ({"plan": "plan.json"}, IsoflopError, "must be a plan, as `isoflop.transform`"),
    ],
)
def test_bad_arguments_change_nothing(options, error, message):
    model = Net()
    optimizer = sgd(model)
    before = snapshot(model, optimizer)
    options = {"method": "rigl", "sparsity": 0.5, "total_steps": 10} | options
    with pytest.raises(error, match=message):
        sparsify(model, optimizer, options.pop("method"), **sparsify_arguments(model, **options))
    after = snapshot(model, optimizer)
    assert str(before) == str(after)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {"exclude": "up"}, IsoflopError, "Pass exclude to the transform"),
        ({"parameter": "down.weight"}, {}, PlanError, "'down.weight'"),
        ({"shape": (6, 6, 5)}, {}, PlanError, "the shape"),
        ({"nnz": 0}, {}, PlanError, "keeps 0 of 108"),
        ({"kind": "dense"}, {}, NoTransformableLayersError, "no sparse layer"),
    ],
)
def test_bad_plans_change_nothing(change, options, error, message):
    model = Net()
    optimizer = sgd(model)
    plan = plan_for(model)
    plan = dataclasses.replace(plan, layers=(dataclasses.replace(plan.layers[1], **change),))
    before = snapshot(model, optimizer)
    with pytest.raises(error, match=message):
        sparsify(model, optimizer, Static(), plan, total_steps=10, **options)
    assert str(before) == str(snapshot(model, optimizer))


def test_weights_that_the_optimizer_does_not_train_are_refused():
    model = Net()
    with pytest.raises(OptimizerError, match=r"'head.weight'.*and 0 more|'head.weight'"):
        sparsify(model, sgd(Net()), "set", plain_plan(model, 0.5, dense_ends=False), total_steps=5)
    model.stem.weight.requires_grad_(False)
    with pytest.raises(OptimizerError, match=r"train 'stem\.weight', which.*exclude"):
        sparsify(model, sgd(model), "set", 0.5, total_steps=5)
    assert "stem.weight_mask" not in model.state_dict()
    sparsify(model, sgd(model), "set", 0.5, total_steps=5, exclude="stem")


def test_what_is_no_optimizer_is_refused():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self):
            pass

    wrong: list[Any] = [None, Wrapper()]
    for optimizer in wrong:
        with pytest.raises(OptimizerError, match="before any wrapper"):
            sparsify(Net(), optimizer, "set", 0.5, total_steps=5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.BatchNorm1d(3), "of its 0 linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "dense_ends=False"),
    ],
)
def test_models_with_nothing_to_mask_are_refused(model, message):
    with pytest.raises(NoTransformableLayersError, match=message):
        make(model)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    with pytest.raises(IsoflopError, match="Run the model once first"):
        make(model)
