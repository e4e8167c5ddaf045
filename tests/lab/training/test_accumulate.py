from typing import Any

import pytest
import torch

from isoflop.errors import IsoflopError
from isoflop.lab.training import train
from isoflop.lab.training.accumulate import micro_batches
from isoflop.lab.training.checkpoint import load_checkpoint


@pytest.mark.parametrize(("parts", "sizes"), [(1, [7]), (3, [2, 2, 3]), (9, [1] * 7)])
def test_parts_of_all_kinds_of_batches(parts, sizes):
    x = torch.arange(14).view(7, 2)
    inputs = {"x": x, "more": (x + 1, [str(i) for i in range(7)])}
    found = list(micro_batches(inputs, x[:, 0], parts))
    assert [len(targets) for _, targets in found] == sizes
    assert torch.equal(torch.cat([part["x"] for part, _ in found]), x)
    assert torch.equal(torch.cat([part["more"][0] for part, _ in found]), x + 1)
    assert [s for part, _ in found for s in part["more"][1]] == inputs["more"][1]
    assert torch.equal(torch.cat([targets for _, targets in found]), x[:, 0])


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_the_steps_are_the_same(tiny_language, python_files, tmp_path, storage):
    states = []
    options: dict[str, Any] = {"method": "rigl", "sparsity": 0.5, "storage": storage}
    for accumulate in (1, 3):
        path = tmp_path / str(accumulate)
        train(
            tiny_language, path, data=python_files, accumulate=accumulate, quiet=True, **options
        )  # fmt: skip
        state = load_checkpoint(path)
        assert state is not None
        states.append(state)
    one, other = states
    # Growth follows the accumulated gradients, and none was lost.
    assert [update["skipped"] for update in other["sparsifier"]["history"]] == [False, False]
    for name, value in one["model"].items():
        if value.is_floating_point() and value.ndim > 1:
            apart = (other["model"][name] - value).norm() / value.norm()
            assert apart < 0.02, name


def test_impossible_numbers_of_parts(tiny_language, tmp_path):
    with pytest.raises(IsoflopError, match="accumulate must be at least 1"):
        train(tiny_language, tmp_path / "run", accumulate=0)
    with pytest.raises(IsoflopError, match="accumulate 9 exceeds the 8 samples"):
        train(tiny_language, tmp_path / "run", accumulate=9)
    assert not (tmp_path / "run").exists()
