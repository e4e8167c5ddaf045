"""Every method with every pattern: masks obey it after every step, and counts are exact."""

import pytest
import torch
import torch.nn.functional as F
from tests.budgets import sparsify_arguments
from torch import nn

import isoflop
from isoflop.methods import METHODS
from isoflop.patterns import PATTERNS

STEPS = 8
SPARSITY = {"nm": 0.5, "transposable": 0.5}


def build_method(name):
    options = {"update_every": 2, "steps": 2, "rounds": 2, "initial_density": 1.0}
    cls = METHODS.get(name)
    fields = cls.__dataclass_fields__
    return cls(**{key: value for key, value in options.items() if key in fields})


@pytest.mark.parametrize("pattern", PATTERNS.names())
@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "dense"])
def test_masks_obey_the_pattern(name, pattern):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()
    )
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16), nn.Linear(16, 4)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(16, 3, 5, 5), torch.arange(16) % 4
    method = build_method(name)
    chosen = PATTERNS.get(pattern)()
    options = {
        "sparsity": SPARSITY.get(pattern, 0.7),
        "pattern": chosen,
        "total_steps": STEPS,
        "example_inputs": x,
        "batches": [(x, y)],
        "loss": F.cross_entropy,
    }
    if method.pruning_schedule is not None and pattern in SPARSITY:
        with pytest.raises(isoflop.IsoflopError, match="pattern='unstructured'"):
            isoflop.sparsify(model, optimizer, method, **sparsify_arguments(model, **options))
        return
    sparsifier = isoflop.sparsify(model, optimizer, method, **sparsify_arguments(model, **options))
    for _ in range(STEPS):
        for key, mask in sparsifier.masks.items():
            assert chosen.check(mask)
            assert int(mask.sum()) == sparsifier.nnz[key]
            assert not model.get_parameter(key)[~mask].any()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    if sparsifier.history and name not in ("gmp",):
        assert any(sum(entry["new"].values()) for entry in sparsifier.history)
