from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from isoflop.methods.drop_grow import DropGrow
from isoflop.methods.growth import GRADIENT, MOMENTUM, RANDOM, Growth


@dataclass(frozen=True, kw_only=True)
class Random(DropGrow):
    grow_by: ClassVar[Growth] = RANDOM


@dataclass(frozen=True, kw_only=True)
class Gradient(DropGrow):
    grow_by: ClassVar[Growth] = GRADIENT


@dataclass(frozen=True, kw_only=True)
class Momentum(DropGrow):
    grow_by: ClassVar[Growth] = MOMENTUM


@pytest.mark.parametrize(
    ("kind", "observed", "growth", "remembers"),
    [
        (Random, [], None, False),
        (Gradient, [2, 4, 6], 4, False),
        (Momentum, [1, 2, 3, 4, 5, 6], None, True),
    ],
)
def test_what_a_method_needs_follows_from_what_it_grows_by(kind, observed, growth, remembers):
    method = kind(update_every=2, end_fraction=0.7, alpha=0.3, schedule="constant")
    assert [t for t in range(1, 11) if method.observes(t, 10)] == observed
    assert method.largest_growth(10, 2, 10) == growth
    assert method.remembers is remembers


def test_random_growth_is_uniform_and_from_the_generator_alone():
    weight, mask = torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    top = [
        int(Random().grow_scores(weight, mask, None, generator).flatten().argmax())
        for _ in range(2000)
    ]
    counts = torch.bincount(torch.tensor(top), minlength=10) / 2000
    assert counts.sub(0.1).abs().max() < 0.04
    again = torch.Generator().manual_seed(0)
    assert int(Random().grow_scores(weight, mask, None, again).argmax()) == top[0]


@pytest.mark.parametrize("kind", [Gradient, Momentum])
def test_growth_by_gradients_ranks_by_magnitude(kind):
    memory = torch.tensor([1.0, -5.0, 2.0])
    scores = kind().grow_scores(torch.zeros(3), torch.zeros(3) > 0, memory, torch.Generator())
    assert scores.tolist() == [1, 5, 2]
