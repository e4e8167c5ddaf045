"""Time and memory of the spectral measures of a whole network.

Sparse Wide ResNet-18 for CIFAR at 90 %, random masks: every measure of every layer, and how the time
of a layer grows with its number of edges.

    python benchmarks/spectra.py [--json]
"""

import argparse
import dataclasses
import json
import resource
import time

import torch

import isoflop
from isoflop.model_specs import build_model
from isoflop.spectral import analyze, analyze_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    dense = build_model("isoflop:resnet18_cifar", num_classes=100)
    model, plan = isoflop.transform(dense, isoflop.SparseWide(0.9), example_inputs=(1, 3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = isoflop.sparsify(model, optimizer, "static", plan, total_steps=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = analyze(model)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    layers = {}
    for name in ("stages.0.0.conv1.weight", "stages.1.0.conv2.weight", "stages.2.0.conv2.weight"):
        start = time.perf_counter()
        analyze_mask(sparsifier.masks[name], model.get_parameter(name))
        layers[name] = {"edges": found[name].edges, "seconds": time.perf_counter() - start}
    result = {
        "seconds": seconds,
        "gib_beyond_model": memory,
        "by_layer": layers,
        "measures": {name: dataclasses.asdict(spectrum) for name, spectrum in found.items()},
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"all layers: {seconds:.1f} s, {memory:.2f} GiB beyond the model")
    for name, layer in layers.items():
        print(f"{name}: {layer['edges']:,} edges, {layer['seconds']:.2f} s")


if __name__ == "__main__":
    main()
