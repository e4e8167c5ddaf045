"""The contestants of other projects, each in a process of its own."""

import contextlib
import copy
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.lab.bench.case import Case
from isoflop.lab.bench.contestant import CONTESTANTS, Contestant, ContestantError
from isoflop.lab.bench.process import PeerProcess
from isoflop.lab.bench.work import ForwardBackward, first_tensor
from isoflop.optional import require

SETUP = "benchmarks/setup_peers.sh"

OLD_OPSET, NEW_OPSET, IR_VERSION = 17, 18, 8
"""Versions of ONNX that the exporters write and all engines read."""


class Peer(Contestant):
    """A contestant in a virtual environment of its own.

    Attributes:
        package: Name of its package, of its environment, and in `worker.PEERS`.
    """

    peer = True
    package: ClassVar[str]
    _process: PeerProcess | None = None

    def unsuited(self, case: Case, peers_folder: Path) -> str | None:
        """Return why it cannot take part; that it is not installed comes last."""
        reason = self.cannot(case)
        if reason is None and not self.python(peers_folder).exists():
            return f"not installed in {peers_folder}: {SETUP} {self.package}"
        return reason

    def cannot(self, case: Case) -> str | None:
        """Return why it cannot do the work of `case`, installed or not."""
        raise NotImplementedError

    def write_inputs(self, case: Case) -> None:
        """Write what its process reads."""
        raise NotImplementedError

    def python(self, peers_folder: Path) -> Path:
        """Return its interpreter."""
        return peers_folder / self.package / "bin" / "python"

    def prepare(self, case: Case, peers_folder: Path) -> None:
        """Write its inputs and start its process."""
        self.write_inputs(case)
        python = self.python(peers_folder).absolute()
        self._process = PeerProcess(python, self.package, case.folder, case.threads)

    def run(self) -> float:
        """Do the work once and return its seconds."""
        assert self._process is not None
        return self._process.run()

    def outputs(self) -> dict[str, Tensor]:
        """Do the work once and return its results."""
        assert self._process is not None
        return self._process.outputs()

    @property
    def note(self) -> str | None:
        """Its version."""
        return self._process.version if self._process else None

    def close(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.close()
            self._process = None


class Engine(Peer):
    """An inference engine that reads ONNX files."""

    def cannot(self, case: Case) -> str | None:
        """Engines do not train."""
        return "inference only" if case.trains else None

    def write_inputs(self, case: Case) -> None:
        """Write the model with its zeros, and the batch."""
        np.savez(case.folder / "inputs.npz", case.sparse.inputs.numpy())
        path = case.folder / "model.onnx"
        if not path.exists():
            export_onnx(case.sparse.model, case.sparse.inputs, path)


@CONTESTANTS.register("onnxruntime")
class OnnxRuntime(Engine):
    """ONNX Runtime."""

    package = "onnxruntime"


@CONTESTANTS.register("openvino")
class OpenVino(Engine):
    """OpenVINO, in float32."""

    package = "openvino"


@CONTESTANTS.register("deepsparse")
class DeepSparse(Engine):
    """DeepSparse."""

    package = "deepsparse"


class SparseLayerPeer(Peer):
    """A library of sparse layers for PyTorch."""

    def write_inputs(self, case: Case) -> None:
        """Write the layer, the batch, and the gradient of the output."""
        layer = case.sparse.model
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        arrays: dict[str, Any] = {
            "x": case.sparse.inputs.numpy(),
            "weight": layer.weight.detach().numpy(),
        }
        if layer.bias is not None:
            arrays["bias"] = layer.bias.detach().numpy()
        if isinstance(layer, nn.Conv2d):
            arrays["stride"] = np.array(layer.stride)
            arrays["padding"] = np.array(layer.padding)
        work = case.sparse.start(layer, case.sparse.inputs)
        if isinstance(work, ForwardBackward):
            arrays["grad"] = work.grad.numpy()
        np.savez(case.folder / "layer.npz", **arrays)


@CONTESTANTS.register("sparseprop")
class SparseProp(SparseLayerPeer):
    """SparseProp's linear layer and convolution."""

    package = "sparseprop"

    def cannot(self, case: Case) -> str | None:
        """Only some geometries are supported."""
        layer = case.sparse.model
        if isinstance(layer, nn.Linear):
            return None
        if not isinstance(layer, nn.Conv2d):
            return "single layers only"
        return None if layer.stride[0] in (1, 2) else "strides 1 and 2 only"


@CONTESTANTS.register("sparselab")
class SparseLab(SparseLayerPeer):
    """SparseLab's linear layer."""

    package = "sparselab"

    def cannot(self, case: Case) -> str | None:
        """There is no convolution."""
        return None if isinstance(case.sparse.model, nn.Linear) else "linear layers only"


def export_onnx(model: nn.Module, inputs: Tensor, path: Path) -> None:
    """Write `model`, for inputs of this shape, to an ONNX file.

    PyTorch's old exporter makes files that DeepSparse runs much faster; what that exporter does not
    know, the new one may.

    Raises:
        ContestantError: It cannot be exported.
    """
    onnx = require("onnx", "bench")
    exported = _Logits(copy.deepcopy(model).eval())
    # Exporters print, log graphs, and warn of their future.
    with warnings.catch_warnings(), _silence():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(exported, (inputs,), path, dynamo=False, opset_version=OLD_OPSET)
        except Exception:
            path.unlink(missing_ok=True)
            try:
                torch.onnx.export(
                    exported,
                    (inputs,),
                    path,
                    dynamo=True,
                    opset_version=NEW_OPSET,
                    external_data=False,
                    verbose=False,
                )
                file = onnx.load(path)
                file.ir_version = IR_VERSION
                onnx.save(file, path)
            except Exception as error:
                path.unlink(missing_ok=True)
                raise ContestantError(f"no ONNX file: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence loggers, and what native code writes to the standard streams."""
    logging.disable(logging.ERROR)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in saved:
            os.dup2(null, stream)
        os.close(null)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copied in saved.items():
            os.dup2(copied, stream)
            os.close(copied)
        logging.disable(logging.NOTSET)


class _Logits(nn.Module):
    """A model that returns a single tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return first_tensor(self.model(x))
