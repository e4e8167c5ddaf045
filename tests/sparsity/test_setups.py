"""Sparse training inside of what people train with."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import isoflop
from isoflop.masks import named_masks

STEPS = 9


class Run:
    def __init__(self, device_type="cpu"):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3)
        )
        self.model.extend([nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5)])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.sparsifier = isoflop.sparsify(
            self.model,
            self.optimizer,
            isoflop.RigL(update_every=2),
            sparsity=0.7,
            dense_ends=False,
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


@pytest.mark.parametrize("ema", [True, False])
def test_averaged_weights_are_sparse_once_masked(ema):
    run = Run()
    average = get_ema_multi_avg_fn(0.9) if ema else None
    averaged = AveragedModel(run.model, multi_avg_fn=average)
    for step in range(STEPS):
        run.train(steps=range(step, step + 1))
        averaged.update_parameters(run.model)
    # An average over different masks is non-zero wherever any of them was.
    counts = [int(p.count_nonzero()) for p in averaged.parameters() if p.ndim > 1]
    assert sum(counts) > sum(run.sparsifier.nnz.values())
    isoflop.apply_masks(averaged)
    assert_sparse(averaged)
    masks = {name.removeprefix("module."): m for name, *_, m in named_masks(averaged)}
    assert masks.keys() == run.sparsifier.masks.keys()
    assert all(torch.equal(masks[name], mask) for name, mask in run.sparsifier.masks.items())
    x, _ = run.batch(0)
    assert averaged(x).isfinite().all()


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
        sparsity=0.5,
        dense_ends=False,
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
        isoflop.sparsify(model, optimizer, "rigl", sparsity=0.5, total_steps=10)
    # Where it stays dense it does no harm.
    isoflop.sparsify(
        model, optimizer, "rigl", sparsity=0.5, total_steps=10, exclude=["1"], dense_ends=False
    )
