import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from isoflop.lab.bench.contestant import ContestantError
from isoflop.lab.bench.process import PeerProcess
from isoflop.lab.bench.work import ForwardBackward

WORKER = Path(__file__).with_name("numpy_worker.py")


def start(folder, layer, x, **more):
    arrays = {"x": x, "weight": layer.weight.detach(), "bias": layer.bias.detach(), **more}
    np.savez(folder / "layer.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    return PeerProcess(Path(sys.executable), "numpy", folder, 1, worker=WORKER)


@pytest.mark.parametrize("backward", [False, True])
def test_a_peer_does_the_work_in_its_process(tmp_path, backward):
    layer, x = torch.nn.Linear(6, 3), torch.randn(4, 6)
    grad = torch.randn(4, 3)
    process = start(tmp_path, layer, x, **({"grad": grad} if backward else {}))
    try:
        assert process.version == importlib.metadata.version("numpy")
        assert process.run() > 0
        found = process.outputs()
    finally:
        process.close()
    right = ForwardBackward(layer, x, grad).results()
    assert found.keys() == (right.keys() if backward else {"output"})
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, right[name])


def test_errors_of_a_peer_are_told(tmp_path):
    with pytest.raises(ContestantError, match="ValueError: a single output is not supported"):
        start(tmp_path, torch.nn.Linear(6, 1), torch.randn(4, 6))


def test_the_last_words_of_a_peer_that_dies_are_told(tmp_path):
    process = start(tmp_path, torch.nn.Linear(6, 3), torch.randn(5, 6))
    try:
        with pytest.raises(ContestantError, match=r"ended with code 1: [\s\S]*killed"):
            process.run()
    finally:
        process.close()


def test_an_interpreter_that_cannot_be_run(tmp_path):
    with pytest.raises(ContestantError, match="cannot be run"):
        PeerProcess(tmp_path / "python", "numpy", tmp_path, 1)
