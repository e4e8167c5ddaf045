"""Cases of whole models: inference, and training steps."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError
from isoflop.lab.bench.case import Case, Job, block_size
from isoflop.lab.bench.work import Forward, TrainingStep, Work, first_tensor
from isoflop.methods import Static
from isoflop.model_specs import build_model, default_example_shape, example_inputs
from isoflop.plan import Plan
from isoflop.sparsity.api import sparsify
from isoflop.transforms import SparseWide, transform

SAMPLES = 4
"""Samples by which the statistics of BatchNorm are set."""

_BATCH = {"inference": 64, "training": 128}
_SEQUENCES = 8


def model_case(
    kind: Literal["inference", "training"],
    spec: str,
    *,
    sparsity: float,
    batch: int | None = None,
    image: int | None = None,
    sequence: int | None = None,
    pattern: str = "unstructured",
    scope: Literal["model", "layers"] = "model",
    threads: int,
    folder: Path,
    seed: int = 0,
) -> Case:
    """Build a model, its Sparse Wide form with random masks, and a random batch.

    Args:
        kind: Forward passes of the model in evaluation mode, or steps of training.
        spec: The model, as for `build_model`; of language models those that return logits.
        sparsity: Sparsity of the transform; 0 compares on the model as it is.
        batch: Samples; by default 64 images for inference, 128 for training, 8 sequences of tokens.
        image: Height and width of the images; by default the model's own. A model whose input is not
            known gets three channels.
        sequence: Tokens of a sequence; by default the model's own number.
        pattern: Pattern of the masks; widths are multiples of its blocks.
        scope: What meets the budget of FLOPs, as in `transform`.
        threads: Threads that the contestants may take.
        folder: A folder for files of the contestants.
        seed: Seed of weights, masks and batch.

    Raises:
        IsoflopError: An option does not fit the model.
    """
    for name, value in (("--batch", batch), ("--image", image), ("--sequence", sequence)):
        if value is not None and value < 1:
            raise IsoflopError(f"{name} must be at least 1, not {value}.")
    multiple = block_size(pattern)
    torch.manual_seed(seed)
    dense = build_model(spec)
    sample = _sample(spec, dense, image, sequence)
    tokens = sample.dtype == torch.long
    if batch is None:
        batch = _SEQUENCES if tokens else _BATCH[kind]
    generator = torch.Generator().manual_seed(seed)
    vocabulary = _outputs(dense, sample)
    sparse, plan = dense, None
    if sparsity > 0:
        config = SparseWide(sparsity, multiple_of=multiple)
        sparse, plan = transform(dense, config, example_inputs=sample, scope=scope, seed=seed)
        # Only its masks are wanted; who trains brings an optimizer of its own.
        optimizer = torch.optim.SGD(sparse.parameters(), lr=0.0)
        method = Static()
        sparsify(sparse, optimizer, method, plan, pattern=pattern, total_steps=1, seed=seed)
    for model in (dense, sparse) if plan else (dense,):
        _settle(model, _batch(sample, SAMPLES, vocabulary, generator), generator)
        model.train(kind == "training")
    inputs = _batch(sample, batch, vocabulary, generator)
    start = Forward if kind == "inference" else _training_step(inputs, vocabulary, generator)
    return Case(
        workload={
            "kind": kind,
            "model": spec,
            "sparsity": sparsity,
            "input_shape": list(inputs.shape),
            "pattern": pattern,
            "scope": scope,
            **_sizes(plan),
        },
        dense=Job(model=dense, inputs=inputs, start=start),
        sparse=Job(model=sparse, inputs=inputs, start=start),
        threads=threads,
        folder=folder,
    )


def _training_step(
    inputs: Tensor, outputs: int, generator: torch.Generator
) -> Callable[[nn.Module, Tensor], Work]:
    tokens = inputs.dtype == torch.long
    shape = inputs.shape if tokens else inputs.shape[:1]
    targets = torch.randint(outputs, shape, generator=generator)
    # Fused steps are the fastest that PyTorch has.
    if tokens:
        optimizer = functools.partial(torch.optim.AdamW, lr=1e-4, fused=True)
    else:
        optimizer = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, fused=True)
    return functools.partial(TrainingStep, targets=targets, optimizer=optimizer)


def _sample(spec: str, model: nn.Module, image: int | None, sequence: int | None) -> Tensor:
    """Return a batch of one sample."""
    try:
        shape = default_example_shape(spec, model)
    except IsoflopError as error:
        if image is None:
            raise IsoflopError(
                f"The input shape of {spec!r} is not known: give --image."
            ) from error
        shape = (1, 3, image, image)
    tokens = example_inputs(spec, shape, meta=True).dtype == torch.long
    if image is not None and tokens:
        raise IsoflopError(f"{spec!r} takes tokens: give --sequence in place of --image.")
    if sequence is not None and not tokens:
        raise IsoflopError(f"{spec!r} takes images: give --image in place of --sequence.")
    if image is not None:
        shape = (*shape[:2], image, image)
    if sequence is not None:
        shape = (1, sequence)
    return example_inputs(spec, shape)


def _batch(sample: Tensor, size: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    shape = (size, *sample.shape[1:])
    if sample.dtype == torch.long:
        return torch.randint(vocabulary, shape, generator=generator)
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def _outputs(model: nn.Module, sample: Tensor) -> int:
    """Return the number of classes, or of tokens."""
    mode = model.training
    output = first_tensor(model.eval()(sample))
    model.train(mode)
    return output.shape[-1]


@torch.no_grad()
def _settle(model: nn.Module, samples: Tensor, generator: torch.Generator) -> None:
    """Make a fresh model compute like a trained one.

    Blocks that begin as their shortcuts, by a zero in their last norm, would let engines leave out
    work; statistics that were never set would let activations grow or vanish from layer to layer;
    dropout would make no two results alike.
    """
    norms = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):
            if weight is not None:
                weight.uniform_(0.5, 1.5, generator=generator)
            if bias is not None:
                bias.uniform_(-0.5, 0.5, generator=generator)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            norms.append((module, module.momentum))
            module.reset_running_stats()
            module.momentum = None  # the plain mean over batches
    model.train()
    if norms:
        model(samples)
    for module, momentum in norms:
        module.momentum = momentum


def _sizes(plan: Plan | None) -> dict[str, int]:
    if plan is None:
        return {}
    return {"macs": plan.macs, "dense_macs": plan.dense_macs, "nnz": plan.nnz, "numel": plan.numel}
