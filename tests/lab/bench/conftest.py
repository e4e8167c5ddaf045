"""Peers for tests, and contestants whose times are known."""

import sys
from pathlib import Path

import pytest
import torch

from isoflop.lab.bench.contestant import CONTESTANTS, Contestant
from isoflop.lab.bench.layer_case import layer_case

FAKE = Path(__file__).with_name("fake_peer.py")


@pytest.fixture
def peers_folder(tmp_path: Path) -> Path:
    """Folder with three peers: a right one, a wrong one, and one that dies at the start."""
    folder = tmp_path / "peers"
    for name in ("sparselab", "sparseprop", "openvino"):
        python = folder / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$0"\n')
        python.chmod(0o755)
    return folder


@pytest.fixture
def tiny_layer(tmp_path: Path):
    """Case of a linear layer 8 → 12."""
    return layer_case(
        "linear", sparsity=0.75, inputs=8, outputs=12, batch=4, threads=1, folder=tmp_path
    )


class Clockwork(Contestant):
    """A contestant that returns the right results and takes the times that it is given."""

    times: tuple[float, ...] = (9.0, 2.0, 3.0, 1.0)
    calls: list[str]

    def prepare(self, case, peers_folder):
        self.case = case
        self.left = list(self.times)

    def run(self):
        type(self).calls.append(type(self).__name__)
        return self.left.pop(0)

    def outputs(self):
        job = self.case.dense if self.on_dense else self.case.sparse
        return job.reference

    def close(self):
        type(self).calls.append(f"close {type(self).__name__}")


class Slow(Clockwork):
    """The dense model."""

    on_dense = True


class Fast(Clockwork):
    """Half the time of the other."""

    times = (9.0, 1.0, 1.5, 0.5)


class Broken(Clockwork):
    """Fails in the second timed round."""

    times = (9.0, 1.0)

    def run(self):
        if not self.left:
            raise RuntimeError("out of order")
        return super().run()


class Unprepared(Clockwork):
    """Fails at once."""

    def prepare(self, case, peers_folder):
        raise ValueError("cannot be prepared")


class Wrong(Clockwork):
    """Computes zeros."""

    def outputs(self):
        return {name: torch.zeros_like(t) for name, t in self.case.sparse.reference.items()}


class Absent(Clockwork):
    """Does not suit the case."""

    def unsuited(self, case, peers_folder):
        return "not here"


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log of calls of the contestants above, which are the only ones."""
    kinds = (Slow, Fast, Broken, Unprepared, Wrong, Absent)
    monkeypatch.setattr(CONTESTANTS, "_entries", {kind.__name__.lower(): kind for kind in kinds})
    calls: list[str] = []
    monkeypatch.setattr(Clockwork, "calls", calls, raising=False)
    return calls
