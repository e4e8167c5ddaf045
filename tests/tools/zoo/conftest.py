"""Models of all kinds of behaviour, importable by the processes that check them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME = "models_of_the_zoo"

MODELS = """
import os, signal, time
import torch
from torch import nn

def good(width=24):
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width + 8, 3), nn.BatchNorm2d(width + 8), nn.ReLU(),
        nn.Conv2d(width + 8, width, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
    model.example_shape = (1, 3, 12, 12)
    return model

def wider():
    return good(40)

class _Bad(nn.Module):
    example_shape = (1, 3, 12, 12)
    def __init__(self, deed):
        super().__init__()
        self.body = good()
        self.runs = 0
        self.deed = deed
    def forward(self, x):
        self.runs += 1
        if self.runs > 1 or "Fake" in type(x).__name__:  # not when the model itself is tried
            self.deed()
        return self.body(x)

def crashes():
    return _Bad(lambda: os.kill(os.getpid(), signal.SIGKILL))

def hangs():
    return _Bad(lambda: time.sleep(600))

def raises():
    def deed():
        raise RuntimeError("no luck with layer 3 of shape (1, 2)")
    return _Bad(deed)

def eats():
    def deed():
        deed.all = b"x" * (1 << 29)
        time.sleep(600)
    return _Bad(deed)

def unbuilt():
    raise RuntimeError("needs a library")
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of the module of the models."""
    (tmp_path / f"{NAME}.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    yield NAME
    sys.modules.pop(NAME, None)
