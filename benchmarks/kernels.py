"""Speed of the sparse kernels layer by layer, against dense PyTorch at equal FLOPs.

One thread, processor time rather than wall time, so that other work on the machine disturbs little.
Run: python benchmarks/kernels.py
"""

import time
from collections.abc import Callable

import torch
from torch import nn

from isoflop.kernels import SparseConv2d, SparseLinear
from isoflop.kernels.cpu.layout import to_batch_innermost

# Batch, channels in and out, kernel, size of the image; a kernel of 0 is a linear layer.
LAYERS = {
    "conv 64→64, 3×3, 56², batch 16": (16, 64, 64, 3, 56),
    "conv 256→256, 3×3, 14², batch 64": (64, 256, 256, 3, 14),
    "conv 512→512, 3×3, 7², batch 64": (64, 512, 512, 3, 7),
    "linear 768→3072, 2048 rows": (2048, 768, 3072, 0, 1),
}


def least(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def both(layer: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Return the seconds of the forward pass and of the backward pass."""
    with torch.no_grad():
        forward = least(lambda: layer(x))
    x.requires_grad_()
    y = layer(x)
    dy = torch.empty_like(y).normal_()
    wanted = [x, *layer.parameters()]
    return forward, least(lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True))


def dense(batch: int, inputs: int, outputs: int, kernel: int, size: int) -> tuple[float, float]:
    if not kernel:
        return both(nn.Linear(inputs, outputs, bias=False), torch.randn(batch, inputs))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        x = torch.randn(batch, inputs, size, size).contiguous(memory_format=layout)
        found.append(both(layer.to(memory_format=layout), x))  # pyright: ignore[reportCallIssue]
    return min(f for f, _ in found), min(b for _, b in found)


def sparse(
    batch: int, inputs: int, outputs: int, kernel: int, size: int, sparsity: float, rows: int
) -> tuple[float, float]:
    width = (1 - sparsity) ** -0.5
    inputs, outputs = round(inputs * width), round(outputs * width / 4) * 4
    k = max(kernel, 1)
    mask = (torch.rand(outputs // rows, inputs, k, k) < 1 - sparsity).repeat_interleave(rows, 0)
    if not kernel:
        layer = nn.Linear(inputs, outputs, bias=False)
        found = SparseLinear.from_dense(layer, mask[:, :, 0, 0], rows=rows)
        return both(found, torch.randn(batch, inputs))
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    x = to_batch_innermost(torch.randn(batch, inputs, size, size))
    return both(SparseConv2d.from_dense(layer, mask, rows=rows), x)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| layer | pattern | sparsity | forward ÷ dense | backward ÷ dense | GFLOP/s |")
    print("|---|---|---|---|---|---|")
    for name, sizes in LAYERS.items():
        forward, backward = dense(*sizes)
        batch, inputs, outputs, kernel, size = sizes
        flops = 2e-9 * batch * inputs * outputs * max(kernel, 1) ** 2 * size**2
        for sparsity in (0.5, 0.75, 0.9):
            for rows, pattern in ((1, "unstructured"), (4, "4x1")):
                f, b = sparse(*sizes, sparsity, rows)
                print(
                    f"| {name} | {pattern} | {sparsity:.0%} | {f / forward:.2f} | "
                    f"{b / backward:.2f} | {flops / f:.0f}, {2 * flops / b:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
