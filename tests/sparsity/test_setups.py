"""Sparse training inside of what people train with."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isoflop
from isoflop.masks import named_masks

STEPS = 9


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3)
    )
    return model.extend([nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)])


class Run:
    def __init__(self, method=None):
        self.model = network()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.sparsifier = isoflop.sparsify(
            self.model,
            self.optimizer,
            method or isoflop.RigL(update_every=2),
            isoflop.plain_plan(self.model, 0.7, dense_ends=False),
            total_steps=STEPS,
        )

    @staticmethod
    def batch(step):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, 6, 6, generator=generator)
        return x, torch.randint(5, (8,), generator=generator)

    def train(self, model=None, steps=range(STEPS), loss=None):
        model = self.model if model is None else model
        for step in steps:
            x, y = self.batch(step)
            self.optimizer.zero_grad()
            (F.cross_entropy(model(x), y) if loss is None else loss(model, x, y)).backward()
            self.optimizer.step()
        return self


def assert_sparse(model, sparsifier=None):
    for name, module, parameter, mask in named_masks(model):
        weight = module.get_parameter(parameter)
        assert not weight[~mask].any()
        if sparsifier is not None:
            assert int(mask.sum()) == sparsifier.nnz[name]


def assert_close(run, other):
    assert run.sparsifier.history == other.sparsifier.history
    torch.testing.assert_close(run.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_the_same(backend):
    torch.compiler.reset()
    run = Run()
    run.train(torch.compile(run.model, backend=backend, fullgraph=True))
    assert_close(run, Run().train())
    assert_sparse(run.model, run.sparsifier)


def test_a_compiled_step_trains_the_same():
    torch.compiler.reset()

    @torch.compile(backend="aot_eager")
    def loss(model, x, y):
        return F.cross_entropy(model(x), y)

    assert_close(Run().train(loss=loss), Run().train())


@pytest.mark.filterwarnings("ignore")  # of the breaks that the updates of masks make
def test_a_compiled_optimizer_step_trains_the_same():
    torch.compiler.reset()
    run = Run()
    step = torch.compile(lambda: run.optimizer.step(), backend="aot_eager")
    for index in range(STEPS):
        x, y = run.batch(index)
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(x), y).backward()
        step()
    assert_close(run, Run().train())
    assert_sparse(run.model, run.sparsifier)


class EmaOfState(nn.Module):
    """An average of all that the state dict has, as timm's ModelEmaV2 is."""

    def __init__(self, model):
        super().__init__()
        self.module = copy.deepcopy(model)

    def forward(self, x):
        return self.module(x)

    @torch.no_grad()
    def update_parameters(self, model):
        pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            mine.copy_(0.9 * mine + (1 - 0.9) * theirs)


def test_masks_that_were_averaged_come_from_the_model():
    run = Run()
    averaged = EmaOfState(run.model)
    for step in range(STEPS):
        run.train(steps=range(step, step + 1))
        averaged.update_parameters(run.model)
    masks = run.sparsifier.masks
    union = {name.removeprefix("module."): mask for name, *_, mask in named_masks(averaged)}
    assert sum(int(m.sum()) for m in union.values()) > sum(int(m.sum()) for m in masks.values())
    before = copy.deepcopy(averaged.state_dict())
    with pytest.raises(isoflop.IsoflopError, match=r"apply_masks\(averaged, model\)"):
        isoflop.apply_masks(averaged)
    with pytest.raises(isoflop.IsoflopError, match="no copy"):
        isoflop.apply_masks(averaged, nn.Linear(2, 2))
    with pytest.raises(isoflop.IsoflopError, match="has no masks"):
        isoflop.apply_masks(averaged, network())
    assert all(torch.equal(before[k], value) for k, value in averaged.state_dict().items())
    isoflop.apply_masks(averaged, run.model)
    assert_sparse(averaged)
    found = {name.removeprefix("module."): mask for name, *_, mask in named_masks(averaged)}
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[key], masks[key]) for key in masks)
    isoflop.apply_masks(averaged.module)  # whose masks are the present ones now


def test_a_copy_from_before_gets_masks():
    plain = network()
    run = Run()
    isoflop.apply_masks(plain, run.model)
    assert_sparse(plain)
    masks = {name: mask for name, *_, mask in named_masks(plain)}
    assert all(torch.equal(masks[name], mask) for name, mask in run.sparsifier.masks.items())
    assert all(mask is not run.sparsifier.masks[name] for name, mask in masks.items())


def test_applying_masks_says_when_there_are_none():
    with pytest.raises(isoflop.IsoflopError, match="no masks"):
        isoflop.apply_masks(nn.Linear(2, 2))


def test_bfloat16_autocast_keeps_the_model_sparse():
    def loss(model, x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), y)

    run = Run().train(loss=loss)
    assert len(run.sparsifier.history) == 3
    assert_sparse(run.model, run.sparsifier)


@pytest.mark.parametrize("before", [True, False])
def test_schedulers_made_before_or_after(before):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    make = torch.optim.lr_scheduler.OneCycleLR
    scheduler = make(optimizer, 0.1, total_steps=STEPS) if before else None
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        isoflop.RigL(update_every=2),
        isoflop.plain_plan(model, 0.5, dense_ends=False),
        total_steps=9,
    )
    scheduler = scheduler or make(optimizer, 0.1, total_steps=STEPS)
    for _ in range(STEPS - 1):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert sparsifier.step == STEPS - 1
    assert_sparse(model, sparsifier)


@pytest.mark.parametrize(
    "change",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore")),
    ],
)
def test_reparametrised_weights_are_refused(change):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    change(model[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(isoflop.IsoflopError, match=r"'1'.*computed.*remove"):
        isoflop.sparsify(model, optimizer, "rigl", 0.5, total_steps=10)
    # Where it stays dense it does no harm.
    isoflop.sparsify(
        model,
        optimizer,
        "rigl",
        isoflop.plain_plan(model, 0.5, dense_ends=False, exclude=["1"]),
        total_steps=10,
    )
