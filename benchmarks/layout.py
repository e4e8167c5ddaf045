"""Time of modules between sparse convolutions, by the layout of the activations.

    python benchmarks/layout.py [--batch 64] [--channels 64] [--size 56] [--threads 2]

`plain` is PyTorch's own module on the layout of the sparse kernels, `isoflop` the one that keeps it.
"""

import argparse
import functools

import torch
from torch import Tensor, nn

from isoflop.kernels.autotune.timing import measure
from isoflop.kernels.cpu.layout import (
    from_batch_innermost,
    layout_modules,
    to_batch_innermost,
)
from isoflop.surgery import replace_modules

MODULES = {
    "BatchNorm2d, training": lambda c: nn.BatchNorm2d(c),
    "BatchNorm2d, evaluation": lambda c: nn.BatchNorm2d(c).eval(),
    "MaxPool2d(3, 2, 1)": lambda _: nn.MaxPool2d(3, 2, 1),
    "AvgPool2d(2)": lambda _: nn.AvgPool2d(2),
    "AdaptiveAvgPool2d(7)": lambda _: nn.AdaptiveAvgPool2d(7),
}


@torch.no_grad()
def forward(module: nn.Module, x: Tensor) -> None:
    module(x)


def forward_and_backward(module: nn.Module, x: Tensor) -> None:
    y = module(x.requires_grad_())
    torch.autograd.grad(y, x, torch.ones_like(y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 64), ("channels", 64), ("size", 56), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x = torch.randn(args.batch, args.channels, args.size, args.size)
    inputs = {
        "contiguous": x,
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "plain": to_batch_innermost(x),
        "isoflop": to_batch_innermost(x),
    }
    print("| ms, forward / with backward | " + " | ".join(inputs) + " |")
    print("|---" * (len(inputs) + 1) + "|")
    for title, make in MODULES.items():
        module = make(args.channels)
        modules = dict.fromkeys(inputs, module)
        modules["isoflop"] = replace_modules(module, layout_modules(module))
        cells = []
        for run in (forward, forward_and_backward):
            runs = {n: functools.partial(run, modules[n], inputs[n].detach()) for n in inputs}
            cells.append(measure(runs))
        print(
            f"| {title} | "
            + " | ".join(f"{1e3 * cells[0][n]:.1f} / {1e3 * cells[1][n]:.1f}" for n in inputs)
            + " |"
        )
    innermost = inputs["isoflop"]
    times = measure(
        {
            "to, element by element": lambda: x.permute(1, 2, 3, 0).contiguous(),
            "to": lambda: to_batch_innermost(x),
            "from, element by element": lambda: innermost.contiguous(),
            "from": lambda: from_batch_innermost(innermost),
        }
    )
    print("conversion, ms: " + ", ".join(f"{name} {1e3 * t:.1f}" for name, t in times.items()))


if __name__ == "__main__":
    main()
