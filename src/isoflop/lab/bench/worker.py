"""The process that times a peer, run by the Python of the peer's own virtual environment.

It imports nothing of isoflop. A line of JSON on the standard input is a request, a line on the
original standard output the answer:

    {"op": "prepare", "peer": NAME, "folder": FOLDER, "threads": N}  →  {"version": VERSION}
    {"op": "run"}      →  {"seconds": SECONDS}
    {"op": "outputs"}  →  {}, with the tensors in FOLDER/outputs.npz

An answer of {"error": TEXT} says that the request failed. The folder holds `model.onnx` and
`inputs.npz`, or, for peers that are layers of PyTorch, `layer.npz`.
"""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class OnnxPeer:
    """An engine that runs an ONNX file."""

    def __init__(self, folder: Path, threads: int) -> None:
        with np.load(folder / "inputs.npz") as arrays:
            self.inputs = [np.ascontiguousarray(array) for array in arrays.values()]
        self.load(str(folder / "model.onnx"), threads)

    def load(self, path: str, threads: int) -> None:
        """Load and compile the model."""
        raise NotImplementedError

    def run(self) -> Any:
        """Do the work once and return the first output."""
        raise NotImplementedError

    def outputs(self) -> dict[str, Any]:
        """Do the work once and return its results by name."""
        return {"output": self.run()}


class DeepSparse(OnnxPeer):
    """DeepSparse."""

    def load(self, path: str, threads: int) -> None:
        """Compile the model for the batch of the inputs."""
        from deepsparse import Engine  # pyright: ignore[reportMissingImports]

        self.engine = Engine(path, batch_size=len(self.inputs[0]), num_cores=threads)

    def run(self) -> Any:
        """Run the engine."""
        return self.engine.run(self.inputs)[0]


class OnnxRuntime(OnnxPeer):
    """ONNX Runtime."""

    def load(self, path: str, threads: int) -> None:
        """Make a session on the CPU."""
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in self.session.get_inputs()]
        self.feed = dict(zip(names, self.inputs, strict=True))

    def run(self) -> Any:
        """Run the session."""
        return self.session.run(None, self.feed)[0]


class OpenVino(OnnxPeer):
    """OpenVINO, in float32 (by default it would compute in bfloat16 where the processor can)."""

    def load(self, path: str, threads: int) -> None:
        """Compile the model for the CPU."""
        import openvino  # pyright: ignore[reportMissingImports]

        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def run(self) -> Any:
        """Run a request."""
        return self.request.infer(self.inputs)[0]


class LayerPeer:
    """A sparse layer of PyTorch; forward, or forward and backward where there is a gradient."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        with np.load(folder / "layer.npz") as arrays:
            tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        self.x = tensors.pop("x")
        self.grad = tensors.pop("grad", None)
        self.layer: Any = self.make(tensors.pop("weight"), tensors.pop("bias", None), tensors)

    def make(self, weight: Any, bias: Any, geometry: dict[str, Any]) -> Any:
        """Return the layer for a dense weight with zeros."""
        raise NotImplementedError

    def weight_gradient(self) -> Any:
        """Return the gradient of the weight as a dense tensor."""
        raise NotImplementedError

    def run(self) -> Any:
        """Do the work once and return the output."""
        if self.grad is None:
            with self.torch.no_grad():
                return self.layer(self.x)
        self.x.requires_grad_()
        self.x.grad = None
        for parameter in self.layer.parameters():
            parameter.grad = None
        output = self.layer(self.x)
        output.backward(self.grad)
        return output

    def outputs(self) -> dict[str, Any]:
        """Do the work once and return its results by name."""
        tensors = {"output": self.run()}
        if self.grad is not None:
            tensors["input gradient"] = self.x.grad
            tensors["gradient of weight"] = self.weight_gradient()
            if getattr(self.layer, "bias", None) is not None:
                tensors["gradient of bias"] = self.layer.bias.grad
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


class SparseProp(LayerPeer):
    """SparseProp, with the faster of its two convolutions."""

    def make(self, weight: Any, bias: Any, geometry: dict[str, Any]) -> Any:
        """Return its layer."""
        from sparseprop.modules import SparseLinear, sparsify_conv2d_auto  # pyright: ignore[reportMissingImports]

        nn = self.torch.nn
        bias = None if bias is None else nn.Parameter(bias)
        if weight.ndim == 2:
            return SparseLinear(weight, bias)
        out, channels, height, width = weight.shape
        stride, padding = geometry["stride"].tolist(), geometry["padding"].tolist()
        dense = nn.Conv2d(channels, out, (height, width), stride, padding, bias=bias is not None)
        dense.weight, dense.bias = nn.Parameter(weight), bias
        return sparsify_conv2d_auto(dense, tuple(self.x.shape))

    def weight_gradient(self) -> Any:
        """Put the gradients in the place of the values, which its own conversion unpacks."""
        from sparseprop.modules.utils import (  # pyright: ignore[reportMissingImports]
            from_csr_2d,
            from_sparse_format_conv2d,
        )

        layer = self.layer
        gradient = layer.W_val.grad
        if len(layer.W_idx) == 2:
            return from_csr_2d(gradient, layer.W_idx, shape=(layer.N, layer.M))
        shape = (layer.OC, layer.IC, layer.K, layer.K)
        return from_sparse_format_conv2d(gradient, layer.W_idx, shape)


class SparseLab(LayerPeer):
    """SparseLab's linear layer."""

    def make(self, weight: Any, bias: Any, geometry: dict[str, Any]) -> Any:
        """Return its layer; it draws a mask of its own, which is replaced."""
        import sparselab  # pyright: ignore[reportMissingImports]

        out, inputs = weight.shape
        layer = sparselab.SparseLinear(inputs, out, bias=bias is not None, sparsity=0.99)
        self.layout = importlib.import_module("sparselab.layout")
        layer._csr = self.layout.from_dense(weight, padding_ratio=layer.padding_ratio)
        layer._values = self.torch.nn.Parameter(
            self.torch.from_numpy(np.asarray(layer._csr.values))
        )
        if bias is not None:
            layer.bias = self.torch.nn.Parameter(bias)
        return layer

    def weight_gradient(self) -> Any:
        """Put the gradients in the place of the values, and the values back."""
        values = self.layer._values
        kept = values.detach().clone()
        values.data.copy_(values.grad)
        dense = self.layout.to_dense(self.layer._csr)
        values.data.copy_(kept)
        return dense


PEERS: dict[str, type[OnnxPeer] | type[LayerPeer]] = {
    "deepsparse": DeepSparse,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "sparseprop": SparseProp,
    "sparselab": SparseLab,
}
"""By the name of their package."""


def main() -> None:
    """Answer requests until the standard input ends."""
    # Libraries print to the standard output, which is for answers only.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer: Any = None
    folder = Path()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if request["op"] == "prepare":
                folder = Path(request["folder"])
                peer = PEERS[request["peer"]](folder, request["threads"])
                answer["version"] = importlib.metadata.version(request["peer"])
            elif request["op"] == "run":
                start = time.perf_counter()
                peer.run()
                answer["seconds"] = time.perf_counter() - start
            else:
                np.savez(folder / "outputs.npz", **peer.outputs())
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
