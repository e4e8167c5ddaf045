"""Transformed models cost what the dense one costs, train, and keep what must not change."""

import pytest
import torch
from tests.torture.checks import attempt, check_concrete, evaluated, every_habit
from tests.torture.habit import Habit, Weights
from tests.torture.training import make_optimizer

import isoflop
from isoflop.transforms import TRANSFORMS

SPARSITIES = {"wide": 0.3, "low_rank": 0.3}
"""Low for widths, as all that stays dense grows by their square; 0.5 otherwise."""


@pytest.mark.parametrize("name", isoflop.list_transforms())
@every_habit
def test_transform(habit: Habit, name: str):
    dense = habit.build()
    config = TRANSFORMS.get(name)(
        SPARSITIES.get(name, 0.5), dense_ends=False, exclude=habit.exclude
    )
    made = attempt(
        habit,
        name,
        lambda: isoflop.transform(dense, config, example_inputs=habit.examples()),
        dense,
    )
    if made is None:
        return
    model, plan = made
    check_concrete(model)
    check_cost(habit, name, dense, model, plan)
    check_kept(dense, model)
    check_sparse_training(habit, dense, model, plan)


def check_cost(habit, name, dense, model, plan):
    assert plan.dense_macs == habit.macs(Weights(dense))
    # Every layer's number of non-zeros is free, so the budget is met to within one weight.
    dearest = max(layer.macs_per_weight for layer in plan.sparse_layers)
    assert abs(plan.macs - plan.dense_macs) <= dearest
    if name == "wide" and habit.scales:
        assert plan.unmasked_macs == habit.macs(Weights(model))


def check_kept(dense, model):
    """What is on parameters stays, and so do frozen weights and tables that keep their size."""
    parameters = dict(model.named_parameters())
    for key, parameter in dense.named_parameters():
        if key in parameters:
            new = parameters[key]
            assert new.requires_grad == parameter.requires_grad
            assert new.dtype == parameter.dtype
            assert vars(new).items() >= vars(parameter).items()
            assert len(new._backward_hooks or ()) == len(parameter._backward_hooks or ()), key
            if not parameter.requires_grad and new.shape == parameter.shape:
                assert torch.equal(new, parameter), key
    state = model.state_dict()
    names = dict(model.named_buffers())
    for key, buffer in dense.named_buffers():
        if key in names and buffer.shape == names[key].shape:
            assert torch.equal(buffer.to_dense(), names[key].to_dense()), key
    for key, value in dense.state_dict().items():
        if not isinstance(value, torch.Tensor):
            assert state[key] == value


def check_sparse_training(habit, dense, model, plan):
    """The model runs as the dense one does, and every sparse weight of the plan trains."""
    shapes = [t.shape for t in evaluated(habit, dense)]
    outputs = evaluated(habit, model)
    assert [t.shape for t in outputs] == shapes
    optimizer = make_optimizer(model)
    sparsifier = isoflop.sparsify(model, optimizer, "static", plan, total_steps=4)
    table = isoflop.profile(model, habit.examples())
    assert (table.macs, table.dense_macs) == (plan.macs, plan.unmasked_macs)
    model.train()
    loss = habit.loss(habit.run(model))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for name, mask in sparsifier.masks.items():
        weight = model.get_parameter(name)
        assert weight.isfinite().all()
        assert not weight[~mask].any()
        assert weight.grad is not None, f"{name} does not train"
