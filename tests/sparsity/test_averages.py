"""PyTorch's averages (EMA, SWA) of sparse models, over all ways to make them and both storages."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tests.budgets import sparsify_arguments
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn

import isoflop
from isoflop.errors import IsoflopError
from isoflop.masks import named_masks

WAYS = {
    "equal": {},
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.8)},
    "ema one by one": {"avg_fn": get_ema_avg_fn(0.8)},
}
METHODS = {
    "rigl": isoflop.RigL(update_every=2),
    "gmp": isoflop.GMP(update_every=1),
    "set": isoflop.SET(update_every=2),
}
STEPS = 6


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model.extend([nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)])
    model.register_buffer("table", torch.arange(3.0))
    return model


def sparse(method, storage="masked", model=None):
    model = network() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    options = {"sparsity": 0.7, "dense_ends": False, "total_steps": 12, "storage": storage}
    return (
        model,
        optimizer,
        isoflop.sparsify(model, optimizer, method, **sparsify_arguments(model, **options)),
    )


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, 6, 6, generator=generator)
    return x, torch.randint(5, (8,), generator=generator)


def train(model, optimizer, step):
    x, y = batch(step)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def masks_of(averaged):
    return {name.removeprefix("module."): mask for name, *_, mask in named_masks(averaged)}


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_an_average_has_the_masks_of_the_model(method, way, use_buffers):
    model, optimizer, sparsifier = sparse(METHODS[method])
    averaged = AveragedModel(model, use_buffers=use_buffers, **WAYS[way])
    # The same average over dense tensors alone, by hand.
    expected = {}
    for step in range(STEPS):
        train(model, optimizer, step)
        averaged.update_parameters(model)
        for name, value in model.state_dict().items():
            copied = name in dict(model.named_buffers()) and not use_buffers
            if copied or not step or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                weight = 1 / (step + 1) if way == "equal" else 0.2
                expected[name] = expected[name].lerp(value, weight)
    masks = sparsifier.masks
    assert masks_of(averaged).keys() == masks.keys()
    assert all(torch.equal(masks_of(averaged)[name], masks[name]) for name in masks)
    for name, value in averaged.module.state_dict().items():
        if name != "1.num_batches_tracked":  # an average of integers, as PyTorch makes it
            torch.testing.assert_close(value, expected[name])
    assert list(averaged.module.state_dict()) == list(model.state_dict())
    off = sum(
        int(averaged.module.get_parameter(n)[~mask].count_nonzero()) for n, mask in masks.items()
    )
    assert off > 0
    twin = pickle.loads(pickle.dumps(averaged)) if way == "equal" else copy.deepcopy(averaged)
    isoflop.apply_masks(averaged)
    isoflop.apply_masks(twin, model)
    for each in (averaged, twin):
        for name, mask in masks.items():
            assert not each.module.get_parameter(name)[~mask].any()
    update_bn([batch(0)[0]], averaged)
    train(model, optimizer, STEPS)  # the model goes on


@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_average_from_before_gets_masks(use_buffers):
    model = network()
    averaged = AveragedModel(model, use_buffers=use_buffers)
    model, optimizer, sparsifier = sparse("rigl", model=model)
    for step in range(3):
        train(model, optimizer, step)
        averaged.update_parameters(model)
    isoflop.apply_masks(averaged)
    assert all(torch.equal(masks_of(averaged)[n], mask) for n, mask in sparsifier.masks.items())
    assert torch.equal(averaged.module.get_buffer("table"), torch.arange(3.0))


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_averages_of_compressed_layers_follow_them(method, way, use_buffers):
    model, optimizer, sparsifier = sparse(METHODS[method], "compressed")
    averaged = AveragedModel(model, use_buffers=use_buffers, **WAYS[way])
    for step in range(STEPS):
        train(model, optimizer, step)
        averaged.update_parameters(model)
    x, _ = batch(0)
    averaged.eval()
    before = averaged(x)
    isoflop.densify_(averaged)
    torch.testing.assert_close(averaged(x), before)
    masks = sparsifier.masks
    assert all(torch.equal(masks_of(averaged)[name], masks[name]) for name in masks)


def test_an_average_of_another_model_is_refused():
    model, _, _ = sparse("rigl", "compressed")
    for averaged in (AveragedModel(network()), AveragedModel(nn.Linear(2, 2))):
        with pytest.raises(IsoflopError, match="the same compressed layers"):
            averaged.update_parameters(model)
    model, _, _ = sparse("rigl")
    averaged = AveragedModel(nn.Linear(2, 2), use_buffers=True)
    with pytest.raises(IsoflopError, match="no copy"):
        averaged.update_parameters(model)
    assert int(averaged.n_averaged) == 0


def test_dense_models_are_averaged_as_pytorch_does():
    averaged, twin = (AveragedModel(network(), use_buffers=True) for _ in range(2))
    for step in range(3):
        model = network()
        model.get_buffer("1.running_mean").fill_(step)
        averaged.update_parameters(model)
        AveragedModel.update_parameters.__wrapped__(twin, model)
    torch.testing.assert_close(averaged.state_dict(), twin.state_dict(), rtol=0, atol=0)
