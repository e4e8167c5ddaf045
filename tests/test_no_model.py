"""Every public function says what to pass where it is given no model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import isoflop
from isoflop import spectral
from isoflop.errors import IsoflopError
from isoflop.io import export
from isoflop.kernels import frozen_dense

INPUTS = (2, 4)

FUNCTIONS = {
    "profile": lambda model, path: isoflop.profile(model, INPUTS),
    "transform": lambda model, path: isoflop.transform(
        model, isoflop.SparseWide(0.5), example_inputs=INPUTS
    ),
    "sparsify": lambda model, path: isoflop.sparsify(
        model, torch.optim.SGD([torch.ones(1)], 0.1), "rigl", 0.5, total_steps=500
    ),
    "freeze": lambda model, path: isoflop.freeze(model, example_inputs=INPUTS),
    "frozen_dense": lambda model, path: frozen_dense(model, example_inputs=INPUTS),
    "inference": lambda model, path: isoflop.accelerate(model, example_inputs=INPUTS),
    "training": lambda model, path: isoflop.accelerate_(model, example_inputs=INPUTS),
    "save": lambda model, path: isoflop.save(model, path),
    "export": lambda model, path: export(model, path, format="pt2", example_inputs=INPUTS),
    "analyze": lambda model, path: spectral.analyze(model),
    "apply_masks": lambda model, path: isoflop.apply_masks(model),
    "align_masks": lambda model, path: isoflop.align_masks(model, nn.Linear(4, 4)),
    "align_masks to": lambda model, path: isoflop.align_masks(nn.Linear(4, 4), model),
    "densify": lambda model, path: isoflop.densify(model),
    "densify_": lambda model, path: isoflop.densify_(model),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "model",
    ["timm:resnet18", None, {}, nn.Linear(4, 4).state_dict(), nn.Linear, lambda x: x],
    ids=["name", "none", "dict", "state", "class", "function"],
)
def test_what_is_no_model_is_refused(function: str, model: Any, tmp_path: Path):
    with pytest.raises(IsoflopError, match=r"model must be a torch\.nn\.Module, not"):
        FUNCTIONS[function](model, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_loaded_into_what_is_no_model(tmp_path: Path):
    isoflop.save(nn.Linear(4, 4), tmp_path / "file")
    with pytest.raises(IsoflopError, match="build_model"):
        isoflop.load(tmp_path / "file", "timm:resnet18")  # pyright: ignore
