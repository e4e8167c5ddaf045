import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import isoflop
from isoflop.masks import get_mask, named_masks, remove_mask, set_mask


def masked_linear() -> tuple[nn.Linear, torch.Tensor]:
    layer = nn.Linear(4, 3)
    mask = torch.arange(12).reshape(3, 4) % 2 == 0
    set_mask(layer, "weight", mask)
    return layer, mask


def test_a_mask_zeroes_what_it_excludes():
    layer, mask = masked_linear()
    assert torch.equal(layer.weight != 0, mask)


def test_state_dict_and_deepcopy_carry_the_mask():
    layer, mask = masked_linear()
    twin = copy.deepcopy(layer)
    twin_mask = get_mask(twin)
    assert twin_mask is not None
    assert torch.equal(twin_mask, mask)
    assert twin_mask is not get_mask(layer)
    assert torch.equal(layer.state_dict()["weight_mask"], mask)


def test_named_masks_names_parameters_and_skips_other_buffers():
    layer, mask = masked_linear()
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.BatchNorm1d(3))
    model[0].register_buffer("weight_mask", torch.ones(2, dtype=torch.bool))  # not a weight's shape
    ((name, module, parameter, found),) = named_masks(model)
    assert (name, module, parameter) == ("1.weight", layer, "weight")
    assert torch.equal(found, mask)


def test_remove_mask_keeps_the_zeros():
    layer, mask = masked_linear()
    remove_mask(layer)
    assert get_mask(layer) is None
    assert "weight_mask" not in layer.state_dict()
    assert torch.equal(layer.weight != 0, mask)


class Made(nn.Linear):
    """A layer of a masked autoencoder, with a mask of its own by the name of ours."""

    def __init__(self, kind):
        super().__init__(8, 8)
        triangle = torch.ones(8, 8).tril()
        self.triangle = triangle
        if kind is None:
            self.register_buffer("weight_mask", None)
        elif kind == "attribute":
            self.weight_mask = triangle
        elif kind == "parameter":
            self.weight_mask = nn.Parameter(triangle, requires_grad=False)
        else:
            self.register_buffer("weight_mask", triangle.to(kind))

    def forward(self, input):
        mask = self.triangle if self.weight_mask is None else self.weight_mask
        return F.linear(input, self.weight * mask, self.bias)


KINDS = [torch.bool, torch.float32, torch.uint8, None, "attribute", "parameter"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_masks_of_the_users_own_stay_theirs(kind, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(Made(kind), nn.Linear(8, 8))
    assert not list(named_masks(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rigl = isoflop.RigL(update_every=2)
    sparsifier = isoflop.sparsify(
        model, optimizer, rigl, isoflop.plain_plan(model, 0.75, dense_ends=False), total_steps=10
    )
    for step in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 8, generator=torch.Generator().manual_seed(step))).sum().backward()
        optimizer.step()
    own = model[0].weight_mask
    assert own is None or torch.equal(torch.as_tensor(own).float(), torch.ones(8, 8).tril())
    assert {name: int(mask.sum()) for name, *_, mask in named_masks(model)} == sparsifier.nnz
    x = torch.randn(2, 8)
    for twin in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert [name for name, *_ in named_masks(twin)] == ["0.weight", "1.weight"]
        assert torch.equal(twin(x), model(x))
    # Dense and masked models alike.
    isoflop.save(model, tmp_path / "m")
    for into in (nn.Sequential(Made(kind), nn.Linear(8, 8)), copy.deepcopy(model)):
        isoflop.load(tmp_path / "m", into)
        assert torch.equal(into(x), model(x))
        assert into.state_dict().keys() == model.state_dict().keys()
    for _, module, parameter, _ in list(named_masks(model)):
        remove_mask(module, parameter)
    assert model[0].weight_mask is own
    isoflop.save(model, tmp_path / "m")
    isoflop.load(tmp_path / "m", into)
    assert torch.equal(into(x), model(x))
    assert not list(named_masks(into))


def test_a_module_with_both_names_taken_is_refused_unchanged():
    layer = Made(torch.bool)
    layer.register_buffer("weight_isoflop_mask", torch.ones(1))
    model = nn.Sequential(nn.Linear(8, 8), layer)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(isoflop.IsoflopError, match="Rename one of them"):
        isoflop.sparsify(
            model,
            optimizer,
            "rigl",
            isoflop.plain_plan(model, 0.5, dense_ends=False),
            total_steps=3,
        )
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_masks_of_pytorchs_pruning_are_not_ours(tmp_path):
    model, twin = (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))
    for pruned in (model, twin):
        prune.l1_unstructured(pruned[0], "weight", 0.5)
    assert not list(named_masks(model))
    isoflop.save(model, tmp_path / "m")
    isoflop.load(tmp_path / "m", twin)
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(isoflop.IsoflopError, match=r"prune\.remove"):
        isoflop.sparsify(
            model,
            optimizer,
            "rigl",
            isoflop.plain_plan(model, 0.5, dense_ends=False),
            total_steps=3,
        )


def test_numbers_that_are_none_go_where_the_mask_is_not():
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, float("nan"))
    set_mask(layer, "weight", torch.zeros(2, 2, dtype=torch.bool))
    assert torch.equal(layer.weight, torch.zeros(2, 2))
