import types
from typing import Any

import pytest
import torch
from torch import nn

from isoflop.errors import InputError
from isoflop.flops.copies import copy_with_tensors
from isoflop.surgery import configs, normalize_inputs, replace_modules


def test_a_copy_keeps_ties_and_leaves_the_original():
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    before = model[0].weight.clone()
    copy: Any = copy_with_tensors(model, lambda _m, _p, _n, tensor: torch.zeros_like(tensor))
    assert copy[0].weight is copy[1].weight
    assert isinstance(copy[0].weight, nn.Parameter)
    assert not copy[0].weight.any()
    assert torch.equal(model[0].weight, before)


def test_tensors_in_containers_are_replaced_too():
    model: Any = nn.Linear(2, 2)
    model.cache = {"cpu": [torch.ones(3), 5]}
    names = []

    def make(_module, path, name, tensor):
        names.append((path, name))
        return torch.zeros_like(tensor)

    copy: Any = copy_with_tensors(model, make)
    assert ("", "cache['cpu'][0]") in names
    assert not copy.cache["cpu"][0].any()
    assert copy.cache["cpu"][1] == 5
    assert model.cache["cpu"][0].all()


def test_configurations_are_found_once_by_their_paths():
    config = types.SimpleNamespace(to_dict=dict, model_type="tiny")
    outer: Any = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    outer[0].config = outer[1].config = config
    assert configs(outer) == {"0.config": config}
    outer.config = config
    assert configs(outer) == {"config": config}


def test_replacing_reaches_every_parent_of_a_shared_module_and_the_root():
    shared = nn.Linear(2, 2)
    model: Any = nn.Sequential(shared, nn.Sequential(shared))
    new = nn.Linear(2, 2)
    assert replace_modules(model, {shared: new}) is model
    assert model[0] is new
    assert model[1][0] is new
    assert replace_modules(shared, {shared: new}) is new


def test_inputs_come_as_tensor_shape_arguments_or_keywords():
    model = nn.Linear(3, 2).to(torch.bfloat16)
    x = torch.zeros(1, 3)
    assert normalize_inputs(model, x) == ((x,), {})
    assert normalize_inputs(model, (x, 2)) == ((x, 2), {})
    assert normalize_inputs(model, {"input": x}) == ((), {"input": x})
    ((made,), kwargs) = normalize_inputs(model, (1, 3))
    assert tuple(made.shape) == (1, 3)
    assert made.dtype == torch.bfloat16
    assert not kwargs


@pytest.mark.parametrize("bad", [None, 3, "1,3", (), (1, 0, 3), (1, -1)])
def test_other_inputs_are_refused(bad):
    with pytest.raises(InputError, match="shape"):
        normalize_inputs(nn.Linear(3, 2), bad)
