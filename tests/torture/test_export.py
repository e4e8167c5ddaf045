"""Exported programs compute what the model does in evaluation."""

import pytest
import torch
from tests.torture.checks import HABITS, assert_close, attempt, evaluated, every_habit
from tests.torture.habit import Habit
from tests.torture.training import trained
from torch.utils._pytree import tree_leaves

from isoflop.io import export


@every_habit
def test_pt2(habit: Habit, tmp_path):
    model, path = trained(habit), tmp_path / "model.pt2"

    def run():
        export(model, path, format="pt2", example_inputs=habit.examples())
        return torch.export.load(path).module()

    program = attempt(habit, "export", run, model)
    if program is None:
        assert not path.exists()
        return
    # The example inputs alone: a program follows the course that the model took on them.
    outputs = habit.run(program, seed=0)
    assert_close(
        [t.detach() for t in tree_leaves(outputs) if torch.is_tensor(t)],
        evaluated(habit, model, seed=0),
        habit.rounding,
    )


@pytest.mark.parametrize("habit", [h for h in HABITS.values() if h.onnx], ids=str)
def test_onnx(habit: Habit, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, path = trained(habit), tmp_path / "model.onnx"
    export(model, path, format="onnx", example_inputs=habit.examples())
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = habit.examples(seed=1)
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close([torch.from_numpy(output)], evaluated(habit, model))
