"""The worker of peers, with a peer of its own: a linear layer named after an installed package."""

import importlib.util
import sys
from pathlib import Path

path = Path(__file__).parents[3] / "src" / "isoflop" / "lab" / "bench" / "worker.py"
spec = importlib.util.spec_from_file_location("worker", path)
assert spec is not None
assert spec.loader is not None
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


class Layer(worker.LayerPeer):
    def make(self, weight, bias, geometry):
        import torch

        print("a banner")  # must not reach the answers
        if weight.shape[0] == 1:
            raise ValueError("a single output is not supported")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        return layer

    def weight_gradient(self):
        return self.layer.weight.grad

    def run(self):
        if len(self.x) == 5:
            sys.exit("killed")
        return super().run()


worker.PEERS["numpy"] = Layer
worker.main()
