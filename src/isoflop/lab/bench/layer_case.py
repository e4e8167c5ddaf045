"""Cases of a single layer: products of a matrix with a sparse weight, and sparse convolutions."""

import functools
import math
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from isoflop.errors import IsoflopError
from isoflop.lab.bench.case import Case, Job, block_size
from isoflop.lab.bench.work import Forward, ForwardBackward
from isoflop.methods import Static
from isoflop.sparsity import plain_plan, sparsify


def layer_case(
    layer: Literal["linear", "conv"],
    *,
    sparsity: float,
    inputs: int,
    outputs: int,
    batch: int,
    kernel: int = 3,
    stride: int = 1,
    image: int = 56,
    backward: bool = False,
    fixed_size: bool = False,
    pattern: str = "unstructured",
    threads: int,
    folder: Path,
    seed: int = 0,
) -> Case:
    """Build a layer, its widened sparse form of equal FLOPs with a random mask, and a random batch.

    Args:
        layer: A linear layer or a convolution.
        sparsity: Inputs and outputs of the sparse layer are sqrt(1 / (1 - sparsity)) times as many;
            it has as many non-zeros as the dense layer has weights.
        inputs: Inputs, or input channels, of the dense layer.
        outputs: Outputs, or output channels, of the dense layer.
        batch: Rows of the input, or images.
        kernel: Height and width of the kernel of a convolution; it is padded by half of that.
        stride: Stride of a convolution.
        image: Height and width of the images.
        backward: Compute the gradients of input, weight and bias too.
        fixed_size: Do not widen: a fraction `sparsity` of the dense layer's weights is zero (paper,
            figure 7).
        pattern: Pattern of the mask; sizes are multiples of its blocks.
        threads: Threads that the contestants may take.
        folder: A folder for files of the contestants.
        seed: Seed of weights, mask and batch.

    Raises:
        IsoflopError: A size is not positive, or does not fit the pattern.
    """
    for name, value in (
        ("--inputs", inputs),
        ("--outputs", outputs),
        ("--batch", batch),
        ("--kernel", kernel),
        ("--stride", stride),
        ("--image", image),
    ):
        if value < 1:
            raise IsoflopError(f"{name} must be at least 1, not {value}.")
    multiple = block_size(pattern)
    factor = 1.0 if fixed_size else math.sqrt(1.0 / (1.0 - sparsity))
    if fixed_size and (inputs % multiple or outputs % multiple):
        raise IsoflopError(f"--pattern {pattern} needs multiples of {multiple} inputs and outputs.")
    wide_inputs, wide_outputs = (
        round(factor * size / multiple) * multiple for size in (inputs, outputs)
    )
    torch.manual_seed(seed)

    def build(inputs: int, outputs: int) -> nn.Linear | nn.Conv2d:
        if layer == "linear":
            return nn.Linear(inputs, outputs)
        return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)

    dense, sparse = build(inputs, outputs), build(wide_inputs, wide_outputs)
    weights = dense.weight.numel()
    nnz = round((1.0 - sparsity) * weights) if fixed_size else weights
    zeros = 1.0 - nnz / sparse.weight.numel()
    if zeros > 0:
        # Only its mask is wanted.
        optimizer = torch.optim.SGD(sparse.parameters(), lr=0.0)
        sparsify(
            sparse,
            optimizer,
            Static(),
            plain_plan(sparse, zeros, dense_ends=False),
            pattern=pattern,
            total_steps=1,
            seed=seed,
        )
    sizes = () if layer == "linear" else (image, image)

    def job(model: nn.Module, channels: int) -> Job:
        x = torch.randn(batch, channels, *sizes)
        if not backward:
            return Job(model=model, inputs=x, start=Forward)
        with torch.no_grad():
            grad = torch.randn_like(model(x))
        start = functools.partial(ForwardBackward, grad=grad)
        return Job(model=model, inputs=x, start=start)

    options = {} if layer == "linear" else {"kernel": kernel, "stride": stride, "image": image}
    return Case(
        workload={
            "kind": "matmul",
            "layer": layer,
            "sparsity": sparsity,
            "inputs": inputs,
            "outputs": outputs,
            "batch": batch,
            **options,
            "sparse_shape": list(sparse.weight.shape),
            "nnz": int(sparse.weight.count_nonzero()),
            "backward": backward,
            "fixed_size": fixed_size,
            "pattern": pattern,
        },
        dense=job(dense, inputs),
        sparse=job(sparse, wide_inputs),
        threads=threads,
        folder=folder,
    )
