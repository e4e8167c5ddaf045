import copy

import torch
from torch import nn

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
