"""Bytes that training keeps per step: parameters, gradients, optimizer state, masks or indices.

Sparse Wide ResNet-18 for CIFAR in masked and in compressed storage, relative to the original dense
model. Counted, not sampled: one training step is taken, then the tensors are added up. The bytes of
an observed step are what compressed storage holds besides, in a step after which weights grow.

    python benchmarks/memory.py [--sparsities 0.5 0.75 0.9] [--base-width 64] [--json]
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import isoflop
from isoflop.kernels import SparseLayer
from isoflop.masks import named_masks
from isoflop.model_specs import build_model
from isoflop.sparsity.weights.compressed import CompressedStorage

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters),
}
SHAPE = (1, 3, 32, 32)


def kept_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the bytes of everything that lives from step to step, by kind."""
    parameters = list(model.parameters())
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    masks = [mask.nbytes for *_, mask in named_masks(model)]
    indices = [m.index.nbytes for m in model.modules() if isinstance(m, SparseLayer)]
    return {
        "trained": sum(p.nbytes + (0 if p.grad is None else p.grad.nbytes) for p in parameters)
        + sum(t.nbytes for t in state),
        "masks or indices": sum(masks) + sum(indices),
    }


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(2, *SHAPE[1:])
    F.cross_entropy(model(x), torch.zeros(2, dtype=torch.long)).backward()
    optimizer.step()


def dense_bytes(dense: nn.Module, kind: str) -> int:
    optimizer = OPTIMIZERS[kind](dense.parameters())
    train_step(dense, optimizer)
    return kept_bytes(dense, optimizer)["trained"]


def measure(sparsity: float, kind: str, storage: Any, base_width: int) -> dict[str, float]:
    """Return bytes, and their ratios to the dense model's."""
    dense = build_model("isoflop:resnet18_cifar", num_classes=100, base_width=base_width)
    model, plan = isoflop.transform(dense, isoflop.SparseWide(sparsity), example_inputs=SHAPE)
    reference = dense_bytes(dense, kind)
    del dense
    optimizer = OPTIMIZERS[kind](model.parameters())
    # The second step is observed.
    method = isoflop.RigL(update_every=2, end_fraction=1.0)
    sparsifier = isoflop.sparsify(model, optimizer, method, plan, storage=storage, total_steps=100)
    train_step(model, optimizer)
    kept = kept_bytes(model, optimizer)
    figures: dict[str, float] = {
        "dense": reference,
        **kept,
        "ratio without index": kept["trained"] / reference,
        "ratio": sum(kept.values()) / reference,
    }
    if isinstance(sparsifier._storage, CompressedStorage):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(2, *SHAPE[1:])), torch.zeros(2).long()).backward()
        held = sparsifier._storage.nbytes
        figures["observed step"] = held
        figures["ratio in observed step"] = (sum(kept.values()) + held) / reference
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--base-width", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for kind in OPTIMIZERS:
        for sparsity in options.sparsities:
            for storage in ("masked", "compressed"):
                figures = measure(sparsity, kind, storage, options.base_width)
                rows.append({"optimizer": kind, "sparsity": sparsity, "storage": storage} | figures)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['optimizer']:>12} {row['sparsity']:.0%} {row['storage']:>10}: "
            f"{row['trained'] / 2**20:8.1f} MiB + {row['masks or indices'] / 2**20:6.1f} MiB, "
            f"÷ dense {row['ratio without index']:.2f}, in all {row['ratio']:.2f}"
            + (
                f", in an observed step {row['ratio in observed step']:.2f}"
                if "observed step" in row
                else ""
            )
        )


if __name__ == "__main__":
    main()
