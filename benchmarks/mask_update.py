"""What an update of all masks costs, beside a training step of the same masked model.

Sparse Wide ResNet-18 for CIFAR at 90 %, 112 million weights, RigL, batch 128 by default. The cost of
an update is that of an optimizer step with one less that of a step without, minimum of repeats.

    python benchmarks/mask_update.py [--batch 128] [--pattern unstructured] [--json]
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

import isoflop
from isoflop.model_specs import build_model


def step_seconds(optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def measure(batch: int, pattern: str, repeats: int) -> dict[str, float]:
    dense = build_model("isoflop:resnet18_cifar", num_classes=100)
    model, plan = isoflop.transform(dense, isoflop.SparseWide(0.9), example_inputs=(1, 3, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = isoflop.RigL(update_every=2, end_fraction=1.0)
    sparsifier = isoflop.sparsify(model, optimizer, method, plan, pattern=pattern, total_steps=1000)
    masked = sum(m.numel() for m in sparsifier.masks.values())
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(100, (batch,))

    start = time.perf_counter()
    F.cross_entropy(model(x), y).backward()
    passes = time.perf_counter() - start
    plain, updating = [], []
    for _ in range(repeats):
        for seconds in (plain, updating):
            for parameter in model.parameters():
                # Fresh values each time, so that the ranking has work to do.
                parameter.grad = torch.randn_like(parameter) * 1e-3
            seconds.append(step_seconds(optimizer))
    update = min(updating) - min(plain)
    step = passes + min(plain)
    bytes_ = sum(m.numel() * m.element_size() for m in sparsifier.masks.values())
    return {
        "weights": masked,
        "mask_bytes_per_weight": bytes_ / masked,
        "passes_seconds": passes,
        "optimizer_step_seconds": min(plain),
        "update_seconds": update,
        "update_over_step": update / step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.batch, options.pattern, options.repeats)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name:>24} {value:,.4g}")


if __name__ == "__main__":
    main()
