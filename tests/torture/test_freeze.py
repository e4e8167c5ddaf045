"""Models for inference compute what the model does in evaluation."""

import torch
from tests.torture.checks import assert_close, attempt, check_concrete, evaluated, every_habit
from tests.torture.habit import Habit
from tests.torture.training import trained
from torch import nn

import isoflop
from isoflop.masks import named_masks


@every_habit
def test_freeze(habit: Habit):
    model = trained(habit)
    frozen = attempt(
        habit, "freeze", lambda: isoflop.freeze(model, example_inputs=habit.examples()), model
    )
    if frozen is None:
        return
    check_concrete(frozen)
    assert not list(named_masks(frozen))
    check_same_function(habit, frozen, model)
    # Nothing is shared: the model may go on training.
    expected = evaluated(habit, frozen)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_close(evaluated(habit, frozen), expected)
    assert not any(module.training for module in frozen.modules())


def check_same_function(habit: Habit, ours: nn.Module, theirs: nn.Module) -> None:
    """Compare on inputs that differ from the example inputs, so that control flow does too."""
    for seed in range(3, 7):
        assert_close(evaluated(habit, ours, seed), evaluated(habit, theirs, seed), habit.rounding)
