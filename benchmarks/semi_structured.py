"""Speed of 2:4 Sparse Wide models of 50 % sparsity on a GPU, against dense bfloat16.

    python benchmarks/semi_structured.py [--model isoflop:gpt3_small] [--batch 8] [--steps 200]

Three tables: single layers of GPT-3 Small and, as linear layers over pixels, the 1 × 1 convolutions
of ResNet-50, at their dense sizes and widened to equal FLOPs; a whole language model, inference and
training, with `isoflop.accelerate`; and the throughput of masked RigL under `torch.compile`, updates
of the masks included, against the dense model under `torch.compile`.
"""

import argparse
import copy
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isoflop
from isoflop.errors import PatternGapWarning
from isoflop.kernels import AccelerationReport, SemiStructuredLinear
from isoflop.kernels.autotune.timing import measure, synchronize
from isoflop.kernels.semi_structured import Packing, enable, packing
from isoflop.masks import set_mask
from isoflop.model_specs import build_model, default_example_shape
from isoflop.patterns import Transposable

TWO_FOUR = Transposable(n=2, m=4)

# Rows, inputs and outputs.
LAYERS = {
    "GPT-3 Small, attention in, 8 × 2048 tokens": (16384, 768, 2304),
    "GPT-3 Small, attention out": (16384, 768, 768),
    "GPT-3 Small, feed-forward in": (16384, 768, 3072),
    "GPT-3 Small, feed-forward out": (16384, 3072, 768),
    "ResNet-50, 1×1, 64→256, 56², batch 64": (64 * 56**2, 64, 256),
    "ResNet-50, 1×1, 256→128, 56²": (64 * 56**2, 256, 128),
    "ResNet-50, 1×1, 1024→256, 14²": (64 * 14**2, 1024, 256),
    "ResNet-50, 1×1, 512→2048, 7²": (64 * 7**2, 512, 2048),
}


def limit(kind: Packing) -> int:
    """Return what both sizes of a weight must be multiples of, to be packed both ways."""
    return max(kind._DTYPE_SHAPE_CONSTRAINTS[torch.bfloat16][:2])


def forward(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        module(x)
    synchronize(x.device)


def forward_and_backward(module: nn.Module, x: Tensor) -> None:
    x = x.detach().requires_grad_()
    y = module(x)
    torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y))
    synchronize(x.device)


def layer_times(
    work: Callable[[nn.Module, Tensor], None],
    dense: tuple[nn.Module, Tensor],
    sparse: tuple[nn.Module, Tensor],
) -> dict[str, float]:
    return measure({"dense": lambda: work(*dense), "sparse": lambda: work(*sparse)})


def layers(kind: Packing, device: torch.device) -> None:
    print("| layer | outputs × inputs, sparse | inference ÷ dense | training ÷ dense |")
    print("|---|---|---|---|")
    multiple = limit(kind)
    for name, (rows, inputs, outputs) in LAYERS.items():
        wide_in, wide_out = (round(n * 2**0.5 / multiple) * multiple for n in (inputs, outputs))
        dense = nn.Linear(inputs, outputs, device=device, dtype=torch.bfloat16)
        trained = nn.Linear(wide_in, wide_out, device=device, dtype=torch.bfloat16)
        shape = (wide_out, wide_in)
        mask = TWO_FOUR.random(shape, TWO_FOUR.count(shape, 0)).to(device)
        set_mask(trained, "weight", mask)
        packed = SemiStructuredLinear.from_dense(trained, kind)
        enable(trained, kind)
        x = torch.randn(rows, inputs, device=device, dtype=torch.bfloat16)
        wide_x = torch.randn(rows, wide_in, device=device, dtype=torch.bfloat16)
        inference = layer_times(forward, (dense, x), (packed, wide_x))
        training = layer_times(forward_and_backward, (dense, x), (trained, wide_x))
        ratios = [times["sparse"] / times["dense"] for times in (inference, training)]
        print(
            f"| {name} | {wide_out} × {wide_in} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True
        )


def sparse_wide(
    dense: nn.Module, tokens: Tensor, *, pattern: str, multiple: int = 1
) -> tuple[nn.Module, torch.optim.Optimizer, float]:
    """Return the Sparse Wide model in RigL's hands, its optimizer, and its MACs ÷ those of `dense`."""
    config = isoflop.SparseWide(0.5, multiple_of=multiple)
    sample = torch.zeros(1, tokens.shape[1], dtype=torch.long)
    model, plan = isoflop.transform(dense, config, example_inputs=sample)
    model = model.to(tokens.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    with warnings.catch_warnings():
        # 2:4 is half of a layer, whatever its plan says; the table has the ratio that comes of it.
        warnings.simplefilter("ignore", PatternGapWarning)
        isoflop.sparsify(model, optimizer, isoflop.RigL(), plan, pattern=pattern, total_steps=10**6)
    return model, optimizer, isoflop.profile(model, sample).macs / plan.dense_macs


def step(model: Callable[..., Any], optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(tokens).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def model_times(kind: Packing, dense: nn.Module, tokens: Tensor) -> None:
    print("| work | time ÷ dense | the same with zeros computed | MACs ÷ dense | layers on 2:4 |")
    print("|---|---|---|---|---|")
    on_device = copy.deepcopy(dense).to(tokens.device)
    model, optimizer, macs = sparse_wide(dense, tokens, pattern="2:4-T", multiple=limit(kind))

    def evaluated(module: nn.Module) -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16):
            forward(module, tokens)

    with torch.autocast(tokens.device.type, torch.bfloat16):
        fast, report = isoflop.accelerate(model, example_inputs=tokens)
    times = measure(
        {
            "dense": lambda: evaluated(on_device.eval()),
            "masked": lambda: evaluated(model.eval()),
            "sparse": lambda: evaluated(fast),
        }
    )
    row("inference", times, macs, report)
    adam = torch.optim.AdamW(on_device.parameters(), lr=1e-4, fused=True)

    def trained(module: nn.Module, by: torch.optim.Optimizer) -> None:
        step(module.train(), by, tokens)
        synchronize(tokens.device)

    contestants = {
        "dense": lambda: trained(on_device, adam),
        "sparse": lambda: trained(model, optimizer),
    }
    masked = measure(contestants)["sparse"]
    with torch.autocast(tokens.device.type, torch.bfloat16):
        report = isoflop.accelerate_(model, example_inputs=tokens)
    row("training step", {**measure(contestants), "masked": masked}, macs, report)


def row(name: str, times: dict[str, float], macs: float, report: AccelerationReport) -> None:
    chosen = sum(layer.chosen == "sparse" for layer in report.layers) if report.accelerated else 0
    print(
        f"| {name} | {times['sparse'] / times['dense']:.2f} | {times['masked'] / times['dense']:.2f} "
        f"| {macs:.3f} | {chosen} of {len(report.layers) + len(report.skipped)} |",
        flush=True,
    )


def throughput(dense: nn.Module, tokens: Tensor, steps: int) -> None:
    print("| training under torch.compile | tokens per second | ÷ dense |")
    print("|---|---|---|")
    plain = copy.deepcopy(dense).to(tokens.device)
    wide, optimizer, _ = sparse_wide(dense, tokens, pattern="unstructured")
    adam = torch.optim.AdamW(plain.parameters(), lr=1e-4, fused=True)
    contestants = {"dense": (plain, adam), "masked RigL, Sparse Wide 50 %": (wide, optimizer)}
    speeds: dict[str, float] = {}
    for name, (model, by) in contestants.items():
        run = functools.partial(step, torch.compile(model.train()), by, tokens)
        for _ in range(3):  # to compile
            run()
        synchronize(tokens.device)
        start = time.perf_counter()
        for _ in range(steps):
            run()
        synchronize(tokens.device)
        speeds[name] = steps * tokens.numel() / (time.perf_counter() - start)
        print(f"| {name} | {speeds[name]:.0f} | {speeds[name] / speeds['dense']:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="isoflop:gpt3_small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args()
    device = torch.device(args.device)
    kind = packing(device)
    if kind is None:
        parser.exit(1, f"PyTorch has no 2:4 products for {device}.\n")
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}, {kind.BACKEND}\n")
    layers(kind, device)
    dense = build_model(args.model)
    length = default_example_shape(args.model, dense)[1]
    tokens = torch.randint(256, (args.batch, length), device=device)
    print()
    model_times(kind, dense, tokens)
    print()
    throughput(dense, tokens, args.steps)


if __name__ == "__main__":
    main()
