"""A trained model is told from a fresh one."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from tests.zoo import ZOO
from torch import nn

import isoflop
from isoflop.model_specs import build_model
from isoflop.transforms.trained import sign_of_training

FRESH = [
    "timm:repvgg_a0",  # draws the gains of its BatchNorm
    "timm:vit_tiny_patch16_224",
    "timm:mixer_s32_224",
    "timm:convnext_atto",
    "timm:nf_resnet26",
    "torchvision:vgg11",
    "torchvision:squeezenet1_0",
    "torchvision:alexnet",
]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


@pytest.mark.parametrize("name", ZOO)
def test_models_of_the_zoo_are_fresh(name):
    assert sign_of_training(ZOO[name][0]()) is None


@pytest.mark.parametrize("spec", FRESH)
def test_models_of_the_libraries_are_fresh(spec):
    if spec in ("timm:nf_resnet26", "torchvision:vgg11", "torchvision:alexnet"):
        torch.manual_seed(0)
    assert sign_of_training(build_model(spec, num_classes=10)) is None


def batch_seen() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 2))
    model(torch.randn(4, 64))
    return model


def statistics_loaded() -> nn.Module:
    model: Any = nn.Sequential(
        nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 2)
    )
    model[1].running_mean[3] = 0.1  # as from a file of other software
    return model


def gains_moved() -> nn.Module:
    model: Any = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))
    nn.init.normal_(model[1].bias)
    return model


def plain_trained() -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
    for _ in range(100):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("make", "sign"),
    [
        (batch_seen, r"1 \(BatchNorm1d\) has seen 1 batches"),
        (statistics_loaded, r"1 \(BatchNorm1d\) has a running_mean that was updated"),
        (gains_moved, r"1 \(LayerNorm\) has a bias whose values differ"),
        (plain_trained, r"0 and others have values that no initialisation draws"),
    ],
)
def test_a_trained_model_is_warned_of_by_name(make, sign):
    with pytest.warns(isoflop.TrainedModelWarning, match=f"Sequential was trained: {sign}"):
        isoflop.transform(make(), isoflop.SparseParallel(0.5), example_inputs=(2, 64))


def test_frozen_and_meta_models_show_nothing():
    model = gains_moved()
    model.get_submodule("1").requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        isoflop.transform(model, isoflop.SparseParallel(0.5), example_inputs=(2, 64))
    assert sign_of_training(batch_seen().to("meta")) is None


def test_a_normalisation_without_statistics_tells_by_its_shifts():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, track_running_stats=False))
    assert sign_of_training(model) is None
    nn.init.normal_(model[1].bias)  # type: ignore[arg-type]
    assert "has a bias whose values differ" in str(sign_of_training(model))
