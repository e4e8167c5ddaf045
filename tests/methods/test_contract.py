"""What every registered method must do, with every optimizer, in every storage."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.budgets import sparsify_arguments
from torch import nn

from isoflop.errors import IsoflopError, OptimizerError
from isoflop.flops.trace import profile
from isoflop.kernels import SparseLayer, densify, densify_
from isoflop.masks import named_masks
from isoflop.methods import RigL
from isoflop.methods.base import METHODS
from isoflop.methods.drop_grow import DropGrow
from isoflop.sparsity import ScoringData, plain_plan
from isoflop.sparsity.allocation import num_nonzero
from isoflop.sparsity.api import sparsify

TOTAL_STEPS = 12
# The options with which each optimizer class of PyTorch is tested; those not named, with their own
# defaults. A class that a later PyTorch adds is tested without an entry here.
OPTIONS = {
    "SGD": [
        {"lr": 0.05},
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    ],
    "Adam": [{"lr": 0.01, "amsgrad": True}],
    "AdamW": [
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "foreach": True},
        {"lr": 0.01, "fused": True},
    ],
    "RMSprop": [{"lr": 0.001, "momentum": 0.9, "centered": True}],
    "Adagrad": [{"lr": 0.01, "initial_accumulator_value": 0.1}],
    "NAdam": [{"lr": 0.01}],
    "RAdam": [{"lr": 0.01}],
    "Adamax": [{"lr": 0.01}],
    "Rprop": [{"lr": 0.001}],
    "LBFGS": [{"lr": 0.1, "max_iter": 3}],
    "Muon": [{"lr": 0.01, "weight_decay": 0.1}],
}
REFUSED = {"SparseAdam"}
REFUSED_COMPRESSED = {"adafactor", "lbfgs", "muon"}

# Methods that need masked storage, and the mark of the others where they train compressed weights.
MASKED_ONLY = {"dense", "snfs", "sr_ste"}
COMPRESSED = "/compressed"


def optimizer_cases():
    cases = {}
    for name in sorted(vars(torch.optim)):
        cls = getattr(torch.optim, name)
        if not isinstance(cls, type) or not issubclass(cls, torch.optim.Optimizer):
            continue
        if cls is torch.optim.Optimizer or name in REFUSED:
            continue
        for i, options in enumerate(OPTIONS.get(name, [{}])):
            cases[f"{name.lower()}-{i}" if i else name.lower()] = (cls, options)
    return cases


OPTIMIZERS = optimizer_cases()

COMPRESSIBLE = [name + COMPRESSED for name in METHODS.names() if name not in MASKED_ONLY]
methods = pytest.mark.parametrize("name", METHODS.names() + COMPRESSIBLE)
optimizers = pytest.mark.parametrize("kind", OPTIMIZERS)


def build_method(name):
    """Return the method with updates often enough for a test of a few steps."""
    cls = METHODS.get(name.removesuffix(COMPRESSED))
    fields = {field.name for field in dataclasses.fields(cls)}
    return cls(**{k: v for k, v in {"update_every": 2, "rounds": 3}.items() if k in fields})


def calibration():
    generator = torch.Generator().manual_seed(1000)
    return [
        (torch.randn(8, 3, 4, 4, generator=generator), torch.randint(4, (8,), generator=generator))
        for _ in range(2)
    ]


def storage_of(name):
    return "compressed" if name.endswith(COMPRESSED) else "masked"


class Run:
    """A small network in training on fixed random data; weights are looked at as dense ones."""

    def __init__(self, name, kind="sgd-1", seed=0, **options: Any):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 10),
            nn.ReLU(),
            nn.Linear(10, 4),
        )
        cls, values = OPTIMIZERS[kind]
        parameters = list(self.model.parameters())
        if kind == "muon":  # which takes matrices only
            parameters = [p for p in parameters if p.ndim == 2]
            options = {"exclude": ["0", "3"], **options}
        self.optimizer = cls(parameters, **values)
        options = {
            "sparsity": 0.7,
            "dense_ends": False,
            "example_inputs": (1, 3, 4, 4),
            **options,
        }
        self.sparsifier = sparsify(
            self.model,
            self.optimizer,
            build_method(name),
            total_steps=TOTAL_STEPS,
            seed=seed,
            storage=storage_of(name),
            **sparsify_arguments(
                self.model, batches=calibration(), loss=F.cross_entropy, **options
            ),
        )

    def backward(self, step):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, 4, 4, generator=generator)
        y = torch.randint(4, (8,), generator=generator)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        return loss

    def train(self, steps):
        for step in steps:
            self.step(step)

    def step(self, step):
        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.step(lambda: self.backward(step))
        else:
            self.backward(step)
            self.optimizer.step()

    def parameter(self, name):
        layer = self.model.get_submodule(name.removesuffix(".weight"))
        return layer.get_parameter("values" if isinstance(layer, SparseLayer) else "weight")

    def dense(self, name, tensor) -> torch.Tensor:
        layer = self.model.get_submodule(name.removesuffix(".weight"))
        return layer.scatter(tensor) if isinstance(layer, SparseLayer) else tensor

    def weight(self, name):
        return self.dense(name, self.parameter(name).detach())

    def grad(self, name):
        grad = self.parameter(name).grad
        assert grad is not None
        return self.dense(name, grad)

    def state(self, name):
        parameter = self.parameter(name)
        state = self.optimizer.state[parameter].values()
        alike = [t for t in state if isinstance(t, torch.Tensor) and t.shape == parameter.shape]
        return [self.dense(name, tensor) for tensor in alike]

    def everything(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
        }

    def load(self, saved):
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sparsifier.load_state_dict(saved["sparsifier"])


def assert_same(a, b):
    """Compare nests of plain data and tensors bit by bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@methods
@optimizers
def test_counts_are_exact_and_everything_masked_is_zero_after_every_step(name, kind):
    if storage_of(name) == "compressed" and kind in REFUSED_COMPRESSED:
        pytest.skip("refused, which is tested below")
    # Which makes one of the layers fully dense.
    run = Run(name, kind, allocation="uniform" if name == "dense" else "erk")
    sparsifier = run.sparsifier
    method, first = sparsifier.method, sum(sparsifier.nnz.values())
    for step in range(TOTAL_STEPS):
        run.train([step])
        if sparsifier._trajectory is None:
            assert sum(sparsifier.nnz.values()) == first
        else:
            assert sum(sparsifier.nnz.values()) == sparsifier._trajectory.cost(step + 1)
        for key, mask in sparsifier.masks.items():
            assert int(mask.sum()) == sparsifier.nnz[key]
            zero = [] if method.keeps_dense_weights else run.state(key)
            for tensor in [run.weight(key), *zero]:
                assert not tensor[~mask].any()
                assert tensor.isfinite().all()
    assert sparsifier.step == TOTAL_STEPS
    if first:
        total = sum(mask.numel() for mask in sparsifier.masks.values())
        assert sum(sparsifier.nnz.values()) == num_nonzero(total, 0.7)


@methods
@optimizers
def test_new_weights_start_at_zero_with_zero_state(name, kind):
    if storage_of(name) == "compressed" and kind in REFUSED_COMPRESSED:
        pytest.skip("refused, which is tested below")
    run = Run(name, kind)
    grown = 0
    if run.sparsifier.method.keeps_dense_weights:
        pytest.skip("masked weights go on training; see test_sr_ste")
    for step in range(TOTAL_STEPS):
        before = {key: mask.clone() for key, mask in run.sparsifier.masks.items()}
        run.train([step])
        for key, mask in run.sparsifier.masks.items():
            new = mask & ~before[key]
            grown += int(new.sum())
            for tensor in [run.weight(key), *run.state(key)]:
                assert not tensor[new].any()
    pruned = sum(sum(entry.get("pruned", {}).values()) for entry in run.sparsifier.history)
    recorded = sum(sum(entry["new"].values()) for entry in run.sparsifier.history)
    # What the ramp has pruned just now can grow, and then is not new.
    assert recorded - pruned <= grown <= recorded
    if isinstance(run.sparsifier.method, DropGrow):
        assert grown > 0


@methods
@pytest.mark.filterwarnings("ignore:Step .* is past the total_steps")
def test_masks_change_only_when_due(name):
    run = Run(name)
    method = run.sparsifier.method
    for step in range(TOTAL_STEPS + 3):
        before = {key: mask.clone() for key, mask in run.sparsifier.masks.items()}
        run.train([step])
        if not method.update_due(step + 1, TOTAL_STEPS):
            assert_same(before, run.sparsifier.masks)
    due = [t for t in range(1, TOTAL_STEPS + 4) if method.update_due(t, TOTAL_STEPS)]
    assert all(t <= TOTAL_STEPS for t in due)
    if not method.keeps_dense_weights:
        assert [entry["step"] for entry in run.sparsifier.history] == due


@methods
@pytest.mark.parametrize("kind", ["sgd-1", "adamw"])
def test_training_macs_are_those_of_the_forecast(name, kind):
    run = Run(name, kind)
    sparsifier = run.sparsifier
    forecast, expected = sparsifier.forecast_macs(), 0
    for step in range(TOTAL_STEPS):
        table = profile(densify(run.model), (1, 3, 4, 4))
        cost = 3 * table.macs
        if sparsifier.method.observes(step + 1, TOTAL_STEPS):
            cost += table.dense_macs - table.macs
        assert sparsifier.step_macs() == cost
        expected += cost
        run.train([step])
    assert sparsifier.training_macs() == expected
    # These two decide during training what each layer has.
    if name.removesuffix(COMPRESSED) not in ("granet", "snfs"):
        assert forecast == expected


@methods
@pytest.mark.parametrize("kind", ["sgd-1", "adamw"])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(name, kind, stop, tmp_path):
    whole = Run(name, kind)
    whole.train(range(TOTAL_STEPS))
    first = Run(name, kind)
    first.train(range(stop))
    torch.save(first.everything(), tmp_path / "checkpoint.pt")
    second = Run(name, kind, seed=99)
    second.load(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    second.train(range(stop, TOTAL_STEPS))
    assert_same(whole.everything(), second.everything())


@methods
def test_runs_depend_on_the_seed_alone(name):
    first, same, other = Run(name), Run(name), Run(name, seed=1)
    for run in (first, same, other):
        torch.manual_seed(id(run) % 1000)  # the global generator has no say
        run.train(range(TOTAL_STEPS))
    assert_same(first.everything(), same.everything())
    if name.removesuffix(COMPRESSED) in ("static", "set", "rigl"):
        for key, mask in first.sparsifier.masks.items():
            assert not torch.equal(mask, other.sparsifier.masks[key])


@methods
def test_the_sparsifier_leaves_the_global_generator_alone(name):
    run = Run(name)
    state = torch.get_rng_state()
    run.train(range(TOTAL_STEPS))
    assert torch.equal(state, torch.get_rng_state())


@methods
@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_trains_the_same(name, keyword):
    plain, closed = Run(name), Run(name)
    plain.train(range(TOTAL_STEPS))
    for step in range(TOTAL_STEPS):
        closure = lambda step=step: closed.backward(step)  # noqa: E731
        loss = closed.optimizer.step(closure=closure) if keyword else closed.optimizer.step(closure)
        assert loss is not None
    assert_same(plain.everything(), closed.everything())


@pytest.mark.parametrize("cls", [getattr(torch.optim, name) for name in sorted(REFUSED)])
def test_optimizers_that_cannot_work_are_refused_before_anything_changes(cls):
    model = nn.Linear(8, 8)
    optimizer = cls(model.parameters())
    with pytest.raises(OptimizerError, match=r"Use torch\.optim\.Adam"):
        sparsify(model, optimizer, "rigl", plain_plan(model, 0.5, dense_ends=False), total_steps=5)
    assert "weight_mask" not in model.state_dict()
    assert not optimizer._optimizer_step_pre_hooks


@methods
@pytest.mark.parametrize("before", [False, True])
def test_groups_schedulers_and_clipping_work_as_without_masks(name, before):
    """Several groups of parameters, a scheduler made before or after, clipped gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": 0.1},
            {"params": [*model[2].parameters(), *model[4].parameters()], "weight_decay": 0.1},
        ],
        lr=0.05,
    )
    scheduler = None
    if before:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    sparsifier = sparsify(
        model,
        optimizer,
        build_method(name),
        plain_plan(model, 0.5, example_inputs=(1, 6), dense_ends=False),
        total_steps=TOTAL_STEPS,
        storage=storage_of(name),
        scoring=ScoringData(
            batches=[(torch.randn(8, 6), torch.arange(8) % 4)],
            loss=F.cross_entropy,
            example_inputs=(1, 6),
        ),
    )
    if scheduler is None:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for step in range(TOTAL_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 6)), torch.arange(8) % 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        scheduler.step()
        assert sparsifier.step == step + 1
        for key, mask in sparsifier.masks.items():
            assert int(mask.sum()) == sparsifier.nnz[key]
            if storage_of(name) == "masked":
                assert not model.get_parameter(key)[~mask].any()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.1 * 0.5**TOTAL_STEPS, 0.05 * 0.5**TOTAL_STEPS])


@methods
def test_skipped_steps_do_not_count(name):
    plain, scaled = Run(name), Run(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for step in range(4):
        plain.backward(step)
        plain.optimizer.step()
        for factor in (float("inf"), 1.0):  # an overflow, and the same step again
            scaled.optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(8, 3, 4, 4, generator=generator)
            y = torch.randint(4, (8,), generator=generator)
            scaler.scale(F.cross_entropy(scaled.model.eval()(x), y) * factor).backward()
            before = copy.deepcopy(scaled.model.state_dict())
            scaler.step(scaled.optimizer)
            scaler.update()
            if factor != 1.0:
                assert_same(before, scaled.model.state_dict())
        assert scaled.sparsifier.step == plain.sparsifier.step == step + 1


@methods
@pytest.mark.parametrize("kind", ["sgd-1", "adamw-2"])
def test_scaled_gradients_train_the_same(name, kind):
    """A scale of 4 is exact; a fused optimizer is handed scaled gradients and unscales them."""
    plain, scaled = Run(name, kind), Run(name, kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for step in range(TOTAL_STEPS):
        plain.train([step])
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, 4, 4, generator=generator)
        y = torch.randint(4, (8,), generator=generator)
        scaled.optimizer.zero_grad()
        scaler.scale(F.cross_entropy(scaled.model(x), y)).backward()
        scaler.step(scaled.optimizer)
        scaler.update()
    assert_same(plain.sparsifier.state_dict(), scaled.sparsifier.state_dict())
    assert_same(plain.model.state_dict(), scaled.model.state_dict())


@methods
def test_copies_of_the_model_keep_their_masks(name):
    run = Run(name)
    run.train(range(3))
    twin = copy.deepcopy(run.model)
    saved = copy.deepcopy(run.model.state_dict())
    run.train(range(3, TOTAL_STEPS))
    assert_same(twin.state_dict(), saved)
    for parameter in twin.parameters():
        assert not parameter._post_accumulate_grad_hooks
        assert not parameter._backward_hooks
    for layer in twin.modules():
        assert not isinstance(layer, SparseLayer) or layer.observer is None
    for key, _, _, mask in named_masks(densify_(twin)):
        assert not twin.get_parameter(key)[~mask].any()


@methods
def test_gradients_between_steps_are_those_of_live_weights(name):
    run = Run(name)
    method = run.sparsifier.method
    for step in range(TOTAL_STEPS):
        run.backward(step)
        # Where all weights train, though out of sight, all have a gradient.
        dense = method.observes(step + 1, TOTAL_STEPS) and method.keeps_dense_weights
        for key, mask in run.sparsifier.masks.items():
            grad = run.grad(key)
            assert bool(grad[~mask].any()) == dense or bool(mask.all())
        nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
        run.optimizer.step()
        for key, mask in run.sparsifier.masks.items():
            # The gradients left behind are those that the step has used.
            if not method.update_due(step + 1, TOTAL_STEPS) and not method.keeps_dense_weights:
                assert not run.grad(key)[~mask].any()


@methods
def test_accumulated_gradients_train_like_a_large_batch(name):
    whole, parts = Run(name), Run(name)
    for step in range(TOTAL_STEPS):
        for run, chunks in ((whole, 1), (parts, 4)):
            run.model.eval()  # batch norm would tell the chunks apart
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(8, 3, 4, 4, generator=generator)
            y = torch.randint(4, (8,), generator=generator)
            run.optimizer.zero_grad()
            for a, b in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
                (F.cross_entropy(run.model(a), b) / chunks).backward()
            run.optimizer.step()
    assert_same(whole.sparsifier.masks, parts.sparsifier.masks)
    torch.testing.assert_close(whole.model.state_dict(), parts.model.state_dict())


@methods
def test_non_finite_gradients_decide_no_mask(name):
    run = Run(name, "sgd")
    method = run.sparsifier.method
    if storage_of(name) == "compressed":
        pytest.skip("only the backward pass sees them; see test_compressed")
    if method.keeps_dense_weights:
        pytest.skip("a gradient that is not finite destroys masked weights, like all others")
    run.train([0])
    masks = {key: mask.clone() for key, mask in run.sparsifier.masks.items()}
    run.backward(1)
    for key, mask in masks.items():
        run.grad(key)[~mask] = float("nan")
    run.optimizer.step()
    for key, mask in run.sparsifier.masks.items():
        assert int(mask.sum()) == run.sparsifier.nnz[key]
        assert run.weight(key).isfinite().all()
        if method.observes(2, TOTAL_STEPS):
            assert not (mask & ~masks[key]).any()
    if method.observes(2, TOTAL_STEPS):
        assert run.sparsifier.history[0]["skipped"] is True
        assert run.sparsifier.history[0]["new"] == {}
    run.train(range(2, 4))
    assert not any(entry["skipped"] for entry in run.sparsifier.history[1:])
    for tensor in run.sparsifier._memory.values():
        assert tensor.isfinite().all()


@methods
def test_a_layer_without_gradient_is_left_alone(name):
    run = Run(name, "sgd")
    masks = {key: mask.clone() for key, mask in run.sparsifier.masks.items()}
    for step in range(2):
        run.backward(step)
        if "3.weight" in masks:
            run.parameter("3.weight").grad = None
        run.optimizer.step()
    if masks:
        new = run.sparsifier.masks["3.weight"]
        assert not (new & ~masks["3.weight"]).any()
        if run.sparsifier.method.pruning_schedule is None:
            assert torch.equal(masks["3.weight"], new)
    for entry in run.sparsifier.history[:1]:
        assert set(entry["new"]) in (set(), set(masks) - {"3.weight"})


@methods
@pytest.mark.filterwarnings("ignore:.*whose sparsifier was removed")
def test_remove_lets_go(name):
    run = Run(name)
    run.train(range(3))
    step = run.sparsifier.step
    run.sparsifier.remove()
    run.sparsifier.remove()
    for key, mask in run.sparsifier.masks.items():
        assert not run.weight(key)[~mask].any()
    run.train(range(3, 6))
    assert run.sparsifier.step == step
    for key, mask in run.sparsifier.masks.items():
        sparse = storage_of(name) == "masked" and not bool(mask.all())
        assert bool(run.weight(key)[~mask].any()) == sparse


def test_dense_trains_as_if_there_were_no_sparsifier():
    run, bare = Run("dense"), Run("dense")
    bare.sparsifier.remove()
    for each in (run, bare):
        each.train(range(TOTAL_STEPS))
    assert_same(run.model.state_dict(), bare.model.state_dict())
    assert run.sparsifier.masks == {}
    assert run.sparsifier.density() == 1.0
    assert not any(key.endswith("_mask") for key in run.model.state_dict())
    assert run.sparsifier.step == TOTAL_STEPS


@pytest.mark.parametrize("name", sorted(MASKED_ONLY))
def test_methods_that_cannot_train_compressed_weights_are_refused(name):
    able = ", ".join(n.removesuffix(COMPRESSED) for n in COMPRESSIBLE)
    with pytest.raises(IsoflopError, match=f"{name}.* cannot train compressed .* are {able};"):
        Run(name + COMPRESSED)


@pytest.mark.parametrize("kind", sorted(REFUSED_COMPRESSED))
def test_optimizers_that_cannot_train_compressed_weights_are_refused(kind):
    if kind not in OPTIMIZERS:
        pytest.skip("not in this PyTorch")
    with pytest.raises(OptimizerError, match="storage='masked'"):
        Run("rigl" + COMPRESSED, kind)


def test_states_of_other_methods_are_refused():
    run = Run("rigl")
    assert run.sparsifier.method == RigL(update_every=2)
    with pytest.raises(ValueError, match="the method 'set', this one 'rigl'"):
        run.sparsifier.load_state_dict(Run("set").sparsifier.state_dict())
