"""A saved model comes back bit by bit; so does a copy, where the model can be copied at all."""

import copy
import pickle
from collections.abc import Callable

import pytest
from tests.torture.checks import (
    assert_close,
    assert_equal,
    attempt,
    check_concrete,
    evaluated,
    every_habit,
)
from tests.torture.habit import Habit
from tests.torture.training import sparsified, train, trained
from torch import Tensor, nn

import isoflop
from isoflop.kernels import SparseLayer


def check_equal(habit: Habit, ours: nn.Module, theirs: nn.Module) -> None:
    """Raise unless two models have the same state, and compute the same."""
    check_concrete(ours)
    state = ours.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        if isinstance(value, Tensor):
            assert_equal([state[key]], [value])
        else:
            assert state[key] == value
    outputs = evaluated(habit, ours), evaluated(habit, theirs)
    if any(isinstance(module, SparseLayer) for module in theirs.modules()):
        # A bound method kept from before multiplies the dense weight, its copy the non-zeros.
        assert_close(*outputs, habit.rounding)
    else:
        assert_equal(*outputs)


@every_habit
def test_masked(habit: Habit, tmp_path):
    model, path = trained(habit), tmp_path / "model.safetensors"
    if attempt(habit, "save", lambda: isoflop.save(model, path) or True, model) is None:
        assert not list(tmp_path.iterdir())
        return
    loaded, plan = isoflop.load(path, habit.build(seed=1))
    assert plan is None
    check_equal(habit, loaded, model)


@every_habit
def test_compressed(habit: Habit, tmp_path):
    made = sparsified(habit, "compressed")
    if made is None or habit.refusal("save"):
        return
    model, path = made[0], tmp_path / "model.safetensors"
    train(habit, *made[:2], range(1, 4))
    isoflop.save(model, path)
    loaded, _ = isoflop.load(path, habit.build(seed=1))
    check_equal(habit, loaded, isoflop.densify_(model))


@every_habit
@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_copies(habit: Habit, storage: str):
    made = sparsified(habit, storage)
    if made is None:
        return
    model = made[0].eval()
    for copied in (copy.deepcopy, _pickled):
        if _works(habit, copied):
            check_equal(habit, copied(model), model)


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _works(habit: Habit, copied: Callable[[nn.Module], nn.Module]) -> bool:
    """Return whether the dense model can be copied in this way, by code that is not its own."""
    model = habit.build()
    try:
        check_equal(habit, copied(model), model)
    except Exception:
        return False
    return not hasattr(model, "__deepcopy__")
