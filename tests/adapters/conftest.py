import pytest
import torch
from torch import nn

import isoflop

STEPS = 12
"""Two epochs of six batches."""


@pytest.fixture
def batches():
    """48 samples in batches of eight."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(48, 10, generator=generator)
    return torch.utils.data.TensorDataset(x, (x[:, :4].argmax(1)))


@pytest.fixture
def build():
    """Return a function that makes a model, its optimizer and its sparsifier."""

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        model.append(nn.Linear(32, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        sparsifier = isoflop.sparsify(
            model,
            optimizer,
            isoflop.RigL(update_every=2),
            isoflop.plain_plan(model, 0.8, dense_ends=False),
            total_steps=STEPS,
        )
        return model, optimizer, sparsifier

    return make


@pytest.fixture
def check():
    """Return a function that checks a finished run against another, if there is one."""

    def compare(model, sparsifier, other=None):
        assert sparsifier.step == STEPS
        assert len(sparsifier.history) == 4
        for name, mask in sparsifier.masks.items():
            assert int(mask.sum()) == sparsifier.nnz[name]
            assert not model.get_parameter(name)[~mask].any()
        if other is not None:
            state, expected = model.state_dict(), other.state_dict()
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[key], expected[key]) for key in state)

    return compare
