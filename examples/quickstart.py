"""The shortest way from a dense model to iso-FLOP sparse training, on random images."""

import torch
import torch.nn.functional as F

import isoflop
from isoflop.model_registry import MODELS


def main(steps: int = 20) -> None:
    torch.manual_seed(0)
    dense = MODELS.get("resnet8_digits")(num_classes=10)
    loader = [(torch.randn(32, 1, 8, 8), torch.randint(10, (32,))) for _ in range(steps)]

    config = isoflop.SparseWide(sparsity=0.75)
    model, plan = isoflop.transform(dense, config, example_inputs=(1, 1, 8, 8))
    print(plan)
    assert abs(plan.relative_gap) <= 1e-6

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    method = isoflop.RigL(update_every=5)
    sparsifier = isoflop.sparsify(model, optimizer, method, plan, total_steps=steps)

    for x, y in loader:  # anybody's loop: hooks on the optimizer do the rest
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    print(f"{len(sparsifier.history)} mask updates; density {sparsifier.density():.4f}")
    print(f"MACs {isoflop.profile(model, (1, 1, 8, 8)).macs:,}, dense {plan.dense_macs:,}")


if __name__ == "__main__":
    main()
