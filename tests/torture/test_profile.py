"""MACs are those that one counts by hand, with and without masks."""

import torch
from tests.torture.checks import attempt, every_habit
from tests.torture.habit import Habit, Weights
from tests.torture.training import make_optimizer

import isoflop


@every_habit
def test_all_weights_count(habit: Habit):
    model = habit.build()
    table = attempt(habit, "profile", lambda: isoflop.profile(model, habit.examples()), model)
    if table is not None:
        assert table.dense_macs == table.macs == habit.macs(Weights(model))
        if habit.first is not None:
            assert isoflop.network_ends(model, habit.examples()) == (habit.first, habit.last)


@every_habit
def test_masked_weights_count_by_their_non_zeros(habit: Habit):
    model = habit.build()
    if habit.refusal("profile") or habit.refusal("masked"):
        return
    dense = Weights(model)
    habit.macs(dense)
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name in sorted(dense.used):
        parameter = model.get_parameter(name)
        if parameter.ndim > 1 and parameter.requires_grad:
            # Rows differ in their numbers of non-zeros, so that parts of a weight do too.
            limits = torch.linspace(0.2, 0.8, len(parameter)).view(-1, *[1] * (parameter.ndim - 1))
            masks[name] = torch.rand(parameter.shape, generator=generator) < limits
    if not masks:
        return
    isoflop.sparsify(model, make_optimizer(model), "static", masks, total_steps=1)
    table = attempt(habit, "profile", lambda: isoflop.profile(model, habit.examples()), model)
    assert table is not None
    assert table.macs == habit.macs(Weights(model, masks))
    assert table.dense_macs == habit.macs(dense)
