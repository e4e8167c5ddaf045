import pytest
import torch
from torch import nn

import isoflop
from isoflop.errors import IsoflopError
from isoflop.masks import named_masks


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def given():
    generator = torch.Generator().manual_seed(1)
    return {
        "0.weight": torch.rand(8, 6, generator=generator) < 0.4,
        "2.weight": torch.rand(8, 8, generator=generator) < 0.25,
    }


def train(model, method, masks, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sparsifier = isoflop.sparsify(
        model,
        optimizer,
        method,
        masks,
        total_steps=8,
        scoring=isoflop.ScoringData(example_inputs=(1, 6)),
        **options,
    )
    for _ in range(8):
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return sparsifier


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_static_keeps_them_and_trains_the_weights(model, storage):
    masks = given()
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    sparsifier = train(model, isoflop.Static(), masks, storage=storage)
    assert all(torch.equal(sparsifier.masks[name], mask) for name, mask in masks.items())
    assert sparsifier.masks.keys() == masks.keys()
    counted = sparsifier.forward_macs()
    isoflop.densify_(model)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any()
        assert (weight != before[name])[mask].any()
    dense = 6 * 8 + 8 * 8 + 8 * 3
    active = sum(int(mask.sum()) for mask in masks.values()) + 8 * 3
    assert counted == (active, dense)


def test_rigl_starts_from_them(model):
    masks = given()
    sparsifier = train(model, isoflop.RigL(update_every=2), masks)
    assert sparsifier.nnz == {name: int(mask.sum()) for name, mask in masks.items()}
    assert any(not torch.equal(sparsifier.masks[name], mask) for name, mask in masks.items())
    assert all(torch.equal(mask, given()[name]) for name, mask in masks.items())


@pytest.mark.parametrize(
    ("method", "change", "options", "message"),
    [
        ("snip", {}, {}, "chooses its own masks"),
        ("gmp", {}, {}, "chooses its own masks"),
        ("dense", {}, {}, "chooses its own masks"),
        ("static", {}, {"exclude": ("0",)}, "exclude cannot be combined with masks"),
        ("static", {"9.weight": torch.ones(2, 2, dtype=torch.bool)}, {}, "no parameter"),
        ("static", {"4.weight": torch.ones(3, 7, dtype=torch.bool)}, {}, r"shape \(3, 8\)"),
        ("static", {"4.weight": torch.ones(3, 8)}, {}, "must be boolean"),
        ("static", {"4.weight": torch.zeros(3, 8, dtype=torch.bool)}, {}, "not empty"),
    ],
)
def test_refused_before_anything_is_changed(model, method, change, options, message):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(IsoflopError, match=message):
        train(model, method, given() | change, **options)
    assert list(named_masks(model)) == []
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_masks_must_obey_the_pattern(model):
    masks = {"2.weight": torch.eye(8, dtype=torch.bool) | (torch.arange(8) == 0)}
    with pytest.raises(IsoflopError, match="do not obey the pattern"):
        train(model, isoflop.Static(), masks, pattern="4x1")
