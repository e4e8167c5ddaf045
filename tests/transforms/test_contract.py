"""What every registered transform must do, on every model of the zoo."""

import copy
import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from tests.zoo import ZOO
from torch import nn

import isoflop
from isoflop.flops.trace import profile
from isoflop.masks import set_mask
from isoflop.transforms import TRANSFORMS

NAMES = TRANSFORMS.names()
SMALL = ("mlp", "vgg", "volume", "densenet", "vit", "encoder", "tied", "gpt2", "llama")


def one_weight(plan: isoflop.Plan) -> int | Fraction:
    """MACs of one weight, of those that the solver can choose freely.

    The factors of low rank are nearly full, which leaves it only the dearer weights.
    """
    prices = [layer.macs_per_weight for layer in plan.sparse_layers]
    return max(prices) if plan.transform == "low_rank" else min(prices)


def apply_plan(model: nn.Module, plan: isoflop.Plan) -> None:
    """Mask the model as the plan says, with the first weights active."""
    for layer in plan.sparse_layers:
        path, _, parameter = layer.parameter.rpartition(".")
        mask = torch.arange(layer.numel).reshape(layer.shape) < layer.nnz
        set_mask(model.get_submodule(path), parameter, mask)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_name", ZOO)
@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.75, 0.9])
def test_flops_match_the_dense_model(name, model_name, sparsity):
    make, shape = ZOO[model_name]
    with torch.device("meta"):
        dense = make()
    # Too large a part of these small models is their ends.
    small = model_name in SMALL and name in ("wide", "low_rank")
    config = TRANSFORMS.get(name)(sparsity, dense_ends=not small)
    model, plan = isoflop.transform(dense, config, example_inputs=shape)
    assert plan.dense_macs == profile(dense, shape).macs
    assert plan.unmasked_macs == profile(model, shape).macs
    gap = abs(plan.macs - plan.dense_macs)
    assert gap <= max(1e-6 * plan.dense_macs, one_weight(plan))
    assert all(0 < layer.nnz <= layer.numel for layer in plan.layers)


@pytest.mark.parametrize("name", NAMES)
def test_the_masked_model_costs_what_the_plan_says(name):
    make, shape = ZOO["cifar_resnet"]
    model, plan = isoflop.transform(make(), TRANSFORMS.get(name)(0.75), example_inputs=shape)
    apply_plan(model, plan)
    table = profile(model, shape)
    assert table.macs == plan.macs
    assert table.dense_macs == plan.unmasked_macs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_name", ["mlp", "gated", "volume", "cifar_resnet", "mobilenet_v2"])
def test_each_layer_meets_its_own_budget_in_layer_scope(name, model_name):
    make, shape = ZOO[model_name]
    _, plan = isoflop.transform(
        make(), TRANSFORMS.get(name)(0.75), example_inputs=shape, scope="layers"
    )
    for source in {layer.source for layer in plan.sparse_layers}:
        parts = [layer for layer in plan.layers if layer.source == source]
        gap = abs(sum(layer.macs for layer in parts) - parts[0].source_macs)
        full = all(layer.nnz == layer.numel for layer in parts)
        assert full or gap <= max(layer.macs_per_weight for layer in parts)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_name", ["mlp", "gated", "volume", "cifar_resnet", "mobilenet_v2"])
def test_the_model_trains_and_the_input_is_untouched(name, model_name):
    make, (_, *shape) = ZOO[model_name]
    shape = (4, *shape)
    dense = make()
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    model, plan = isoflop.transform(dense, TRANSFORMS.get(name)(0.5), example_inputs=shape)
    apply_plan(model, plan)
    output = model(torch.randn(shape))
    assert output.shape == dense(torch.randn(shape)).shape
    assert output.isfinite().all()
    output.square().mean().backward()
    for layer in plan.layers:
        gradient = model.get_parameter(layer.parameter).grad
        assert gradient is not None
        assert gradient.isfinite().all()
    after = {
        k: v for k, v in dense.state_dict().items() if "num_batches" not in k and "running" not in k
    }
    assert all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_fresh_and_follow_the_seed(name):
    make, shape = ZOO["vgg"]
    dense = make()
    config = TRANSFORMS.get(name)(0.5)
    random_state = torch.get_rng_state()
    one, _ = isoflop.transform(dense, config, example_inputs=shape, seed=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.rand(3)
    same, _ = isoflop.transform(copy.deepcopy(dense), config, example_inputs=shape, seed=1)
    other, _ = isoflop.transform(dense, config, example_inputs=shape, seed=2)
    same_state, other_state = same.state_dict(), other.state_dict()
    assert all(torch.equal(value, same_state[key]) for key, value in one.state_dict().items())
    weights = [key for key, value in one.state_dict().items() if value.ndim > 1]
    assert not any(torch.equal(one.state_dict()[key], other_state[key]) for key in weights)
    assert all(value.isfinite().all() for value in one.state_dict().values())


@pytest.mark.parametrize("name", NAMES)
def test_ends_stay_dense_by_position_unless_told_otherwise(name):
    make, shape = ZOO["cifar_resnet"]
    kind = TRANSFORMS.get(name)
    first, last = isoflop.network_ends(make(), shape)
    _, plan = isoflop.transform(make(), kind(0.5), example_inputs=shape)
    assert not {layer.source for layer in plan.sparse_layers} & (first | last)
    _, plan = isoflop.transform(make(), kind(0.5, dense_ends=False), example_inputs=shape)
    assert {layer.source for layer in plan.sparse_layers} >= first | last


@pytest.mark.parametrize("name", NAMES)
def test_excluded_layers_stay_dense(name):
    make, shape = ZOO["cifar_resnet"]
    kind = TRANSFORMS.get(name)
    _, plan = isoflop.transform(
        make(), kind(0.5, exclude=("stages.3", "*.shortcut.0")), example_inputs=shape
    )
    sources = {layer.source for layer in plan.sparse_layers}
    assert sources
    assert not any(s.startswith("stages.3") or s.endswith("shortcut.0") for s in sources)
    with pytest.raises(isoflop.IsoflopError, match=r"'nowhere\*' matches no module"):
        isoflop.transform(make(), kind(0.5, exclude=("nowhere*",)), example_inputs=shape)


@pytest.mark.parametrize("name", NAMES)
def test_bad_sparsities_are_refused(name):
    bad_values: list[Any] = [1.0, -0.1, 1.5, float("nan"), float("inf"), "0.5", None, True]
    for bad in bad_values:
        with pytest.raises(isoflop.IsoflopError, match=r"\[0, 1\)"):
            TRANSFORMS.get(name)(bad)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_nothing_to_transform_is_refused(name):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(isoflop.NoTransformableLayersError, match="dense_ends=False"):
        isoflop.transform(model, TRANSFORMS.get(name)(0.5), example_inputs=(1, 4))


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_frozen_and_plain_data(name):
    config: Any = TRANSFORMS.get(name)(0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sparsity = 0.6
    assert config.to_dict()["sparsity"] == 0.5
    assert TRANSFORMS.get(name)(**config.to_dict()) == config


@pytest.mark.parametrize("name", NAMES)
def test_plans_of_real_models_round_trip(name):
    make, shape = ZOO["gated"]
    _, plan = isoflop.transform(make(), TRANSFORMS.get(name)(0.5), example_inputs=shape)
    assert isoflop.Plan.from_json(plan.to_json()) == plan
