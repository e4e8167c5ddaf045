"""Models on the sparse kernels compute, and train, as they did before."""

import pytest
import torch
from tests.torture.checks import (
    assert_close,
    attempt,
    check_concrete,
    every_habit,
    needs_kernels,
)
from tests.torture.habit import Habit
from tests.torture.test_freeze import check_same_function
from tests.torture.training import sparsified, train, trained

import isoflop
from isoflop.kernels.autotune import timing

pytestmark = [
    needs_kernels,
    # Nothing to accelerate is no error.
    pytest.mark.filterwarnings("ignore::isoflop.NoEffectWarning"),
]


@pytest.fixture(autouse=True)
def sparse_always_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything once, and let the sparse layers and the changed model be the faster ones."""
    order = ["sparse", "after", "dense", "before"]

    def measure(contestants):
        for run in contestants.values():
            run()
        return {name: float(1 + order.index(name)) for name in contestants}

    monkeypatch.setattr(timing, "measure", measure)


@every_habit
def test_inference(habit: Habit):
    if habit.refusal("freeze"):
        return
    model = trained(habit)
    frozen = isoflop.freeze(model, example_inputs=habit.examples())
    made = attempt(
        habit,
        "accelerate",
        lambda: isoflop.accelerate(frozen, example_inputs=habit.examples(), cache=False),
        frozen,
    )
    if made is None:
        return
    fast, _ = made
    check_concrete(fast)
    check_same_function(habit, fast, model)


@every_habit
def test_training(habit: Habit):
    made, other = sparsified(habit, "compressed"), sparsified(habit, "compressed")
    if made is None or other is None:
        return
    model = made[0]
    result = attempt(
        habit,
        "accelerate.training",
        lambda: isoflop.accelerate_(model, example_inputs=habit.examples(), cache=False),
        model,
        changes=True,
    )
    if result is None:
        return
    losses = train(habit, *made[:2], range(1, 4))
    expected = train(habit, *other[:2], range(1, 4))
    assert_close([torch.tensor(losses)], [torch.tensor(expected)], habit.rounding)
