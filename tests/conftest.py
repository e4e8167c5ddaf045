"""What several test modules need."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def times_of_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the measured times of layers to this process: equal runs then choose the same kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield


@pytest.fixture
def tiny_recipe():
    """Recipe of a run that takes about a second."""
    from isoflop.lab.recipes import get_recipe

    # Not `Recipe.replace`: what that is given must suit the method.
    return dataclasses.replace(get_recipe("digits"), base_width=4, epochs=2, update_every=8)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an importable module of a user's own models."""
    name = "models_of_a_user"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def mlp(num_classes=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(),\n"
        "                         nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
        "def fixed():\n"
        "    return nn.Linear(4, 2)\n"
        "def nothing():\n"
        "    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)
