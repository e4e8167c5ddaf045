"""What one round of a global ranking costs, beside the gradients: choosing all masks by scores.

Sparse Wide ResNet-18 for CIFAR at 90 %, 112 million weights, random scores in float64, as SynFlow has
them. Processor time.

    OMP_NUM_THREADS=1 python benchmarks/ranking.py
"""

import time

import torch

import isoflop
from isoflop.model_specs import build_model
from isoflop.patterns import Unstructured
from isoflop.sparsity.budget_spec import BudgetSpec, whole_prices
from isoflop.sparsity.targets import from_plan


def main() -> None:
    dense = build_model("isoflop:resnet18_cifar", num_classes=100)
    model, plan = isoflop.transform(dense, isoflop.SparseWide(0.9), example_inputs=(1, 3, 32, 32))
    targets = tuple(from_plan(model, plan))
    prices = tuple(whole_prices([layer.macs_per_weight for layer in plan.sparse_layers]))
    layout = BudgetSpec(targets, prices, Unstructured())
    generator = torch.Generator().manual_seed(0)
    scores = [
        torch.rand(shape, dtype=torch.float64, generator=generator) for shape in layout.shapes
    ]
    start = time.process_time()
    budget = layout.cost([target.nnz for target in targets])
    counts, ranked = layout.ranked(scores, budget, min_per_output=1)
    shared = time.process_time()
    layout.select(ranked, counts)
    end = time.process_time()
    print(f"weights {sum(layout.sizes):,}")
    print(f"ranking of all weights {shared - start:.1f} s")
    print(f"masks of all layers {end - shared:.1f} s")


if __name__ == "__main__":
    main()
