"""First gradients of a deep network whose layers were replaced."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import isoflop
from isoflop.transforms import Transform

CONFIGS = (isoflop.SparseParallel, isoflop.SparseFactorized, isoflop.SparseDoped)


class Bottleneck(nn.Module):
    """The inverted residual block of EfficientNet: the last convolution has no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU()),
            *(
                nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
                nn.BatchNorm2d(32),
                nn.SiLU(),
            ),
            *(nn.Conv2d(32, 8, 1, bias=False), nn.BatchNorm2d(8)),
        )

    def forward(self, x):
        return x + self.body(x)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), *(Bottleneck() for _ in range(6))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def gradient_norm(model: nn.Module) -> float:
    torch.manual_seed(1)
    loss = F.cross_entropy(model.train()(torch.randn(4, 3, 8, 8)), torch.tensor([1, 2, 3, 4]))
    loss.backward()
    return math.sqrt(
        sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
    )


def transformed(config: Transform) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, plan = isoflop.transform(network(), config, example_inputs=(4, 3, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    isoflop.sparsify(model, optimizer, "static", plan, total_steps=10)
    return model, optimizer


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("nonlinearity", "factor"), [("none", 3.0), ("silu", 5.0), ("auto", 10.0)])
def test_gradients_start_like_those_of_the_dense_model(config, nonlinearity, factor):
    model, optimizer = transformed(config(0.75, nonlinearity=nonlinearity))
    dense, norm = gradient_norm(network()), gradient_norm(model)
    assert dense / factor < norm < dense * factor
    optimizer.step()
    optimizer.zero_grad()
    assert math.isfinite(gradient_norm(model))
