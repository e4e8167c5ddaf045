"""Code that picks parameters by name is told that those of compressed layers have another."""

import copy
from typing import Any, Literal

import pytest
import torch
from torch import nn

import isoflop


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class Penalised(Net):
    def forward(self, x):
        return super().forward(x), self.penalty()

    def penalty(self):
        return sum(p.square().sum() for n, p in self.named_parameters() if "weight" in n)


class InComprehension(Net):
    def forward(self, x):
        decayed = [[p for n, p in m.named_parameters() if p.ndim > 1] for m in self.children()]
        return super().forward(x) + sum(p.sum() for group in decayed for p in group)


class ByModules(Net):
    def forward(self, x):
        layers: Any = self.children()
        return super().forward(x), sum(layer.weight.square().sum() for layer in layers)


class NamesOutsideOfTheForwardPass(Net):
    def groups(self):
        return [p for n, p in self.named_parameters() if n.endswith("weight")]


def sparsify(model, storage: Literal["masked", "compressed"] = "compressed"):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    isoflop.sparsify(
        model,
        optimizer,
        "static",
        isoflop.plain_plan(model, 0.5, dense_ends=False),
        total_steps=4,
        storage=storage,
    )
    return model


@pytest.mark.parametrize("make", [Penalised, InComprehension])
def test_forward_pass_that_asks_for_names_is_refused(make):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(isoflop.IsoflopError, match=r"`named_parameters`.*`module.weight`"):
        sparsify(nn.Sequential(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sparsify(model, "masked")


def test_weights_of_modules_give_the_same_penalty():
    x = torch.randn(4, 12)
    dense = ByModules()
    masked, compressed = sparsify(copy.deepcopy(dense), "masked"), sparsify(dense)
    torch.testing.assert_close(compressed(x), masked(x))


def test_compressed_storage_tells_of_the_name(capsys):
    sparsify(NamesOutsideOfTheForwardPass(), "masked")
    assert not capsys.readouterr().err
    sparsify(NamesOutsideOfTheForwardPass())
    assert "3 weights are now parameters named `values`" in capsys.readouterr().err
