"""What the paper's large trainings would take: memory, communication and time, computed.

Nothing here is measured. Parameters, non-zeros and MACs are exact: `isoflop.transform` makes the
models on the meta device. All else follows from the assumptions below by the formulas in
docs/distributed.md. Run: python benchmarks/planning.py
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import isoflop
from isoflop.lab.models.gpt3 import CONTEXT
from isoflop.lab.training.sharding import blocks
from isoflop.model_specs import build_model

# The machine: NVIDIA H100 SXM, 8 to a node, one 400 Gb/s network card each.
PEAK_FLOPS = 989e12  # bfloat16 with 32-bit sums, dense
MEMORY = 80e9  # bytes
GPUS_PER_NODE = 8
NODE_BANDWIDTH = 450e9  # bytes per second, device and direction, within a node
NETWORK_BANDWIDTH = 50e9  # the same between nodes
BANDWIDTH_SHARE = 0.7  # of these, what collective operations reach

# The share of the peak that training reaches.
UTILISATION = {"image": 0.10, "text": 0.40}

# Bytes per parameter.
WEIGHT, GRADIENT, MASK, BUCKET, HALF = 4, 4, 1, 4, 2
OPTIMIZER = {"image": 4, "text": 8}  # SGD with momentum; AdamW

# Bytes kept for the backward pass: per saved activation; per token, layer and width of a
# transformer (Korthikanti et al. 2022, without attention matrices); per token and word of logits.
ACTIVATION, TRANSFORMER_ACTIVATION, LOGIT = 2, 34, 14

TOKENS_PER_PARAMETER = 20  # of the dense model (Hoffmann et al. 2022), as in the paper's appendix D
IMAGES, IMAGENET_EPOCHS = 1_281_167, 90


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training.

    Attributes:
        model: Name of the dense model.
        sparsities: Of Sparse Wide; 0 for the dense model.
        gpus: Number of GPUs.
        batch: Samples of a step, all GPUs together: images, or sequences of 2048 tokens.
        kind: What a sample is.
    """

    model: str
    sparsities: tuple[float, ...] = (0, 0.5, 0.75, 0.9)
    gpus: int
    batch: int
    kind: str = "text"


# Batches: of the paper for the first two, of GPT-3 (about 1M and 2M tokens) for the others.
CASES = (
    Case(model="resnet18", sparsities=(0, 0.9), gpus=8, batch=256, kind="image"),
    Case(model="gpt3_small", gpus=8, batch=256),
    Case(model="gpt3_xl", gpus=64, batch=512),
    Case(model="gpt3_6.7b", gpus=256, batch=1024),
    Case(model="gpt3_13b", gpus=512, batch=1024),
    Case(model="gpt3_20b", gpus=1024, batch=1024),
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one training takes.

    Attributes:
        params: All parameters.
        nnz: Parameters that may be non-zero.
        activations: Bytes of a device for the backward pass.
        ddp: Bytes of a device, the model copied to each.
        fsdp: Bytes of a device, the model sharded.
        host: Bytes of a node's main memory while its processes build the model.
        sent: Bytes that a device sends in a step, with dense gradients.
        sent_values: The same with the values of non-zeros alone.
        sending: Seconds of a step to send `sent`.
        computing: Seconds of a step to compute, zeros included.
        computing_values: The same with zeros skipped.
        steps: Steps of the training.
    """

    params: int
    nnz: int
    activations: float
    ddp: float
    fsdp: float
    host: float
    sent: float
    sent_values: float
    sending: float
    computing: float
    computing_values: float
    steps: int

    @property
    def hours(self) -> float:
        """Hours of the training with masks: communication and computation overlap."""
        return self.steps * max(self.sending, self.computing) / 3600

    @property
    def hours_values(self) -> float:
        """The same if zeros were neither computed nor sent, at equal utilisation."""
        sending = self.sending * self.sent_values / self.sent
        return self.steps * max(sending, self.computing_values) / 3600


def largest_group(model: nn.Module) -> int:
    """Return the parameters of the largest part that sharding gathers at once."""
    seen: set[int] = set()
    sizes = []
    for module in (*blocks(model), model):
        new = {id(p): p.numel() for p in module.parameters() if id(p) not in seen}
        seen |= new.keys()
        sizes.append(sum(new.values()))
    return max(sizes)


def saved_activations(model: nn.Module, inputs: Tensor) -> int:
    """Return how many numbers a forward pass keeps for the backward pass, parameters left out."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor.numel()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(inputs)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    del outputs  # until here, no storage could take the place of another
    return sum(count for storage, count in saved.items() if storage not in own)


def activation_bytes(case: Case, model: Any, inputs: Tensor) -> float:
    """Return the bytes that one sample keeps for the backward pass."""
    if case.kind == "image":
        return ACTIVATION * saved_activations(model, inputs)
    words, width = model.transformer.wte.weight.shape
    layers = len(model.transformer.h)
    return CONTEXT * (TRANSFORMER_ACTIVATION * layers * width + LOGIT * words)


def estimate(case: Case, sparsity: float) -> Estimate:
    """Return what a training takes."""
    model = build_model(f"isoflop:{case.model}", meta=True)
    if case.kind == "image":
        inputs = torch.zeros(1, 3, 224, 224, device="meta")
        samples = IMAGES * IMAGENET_EPOCHS
    else:
        inputs = torch.zeros(1, CONTEXT, dtype=torch.long, device="meta")
        size = sum(p.numel() for p in model.parameters())
        samples = TOKENS_PER_PARAMETER * size // CONTEXT
    # Each layer meets its own budget in the paper's GPTs, the whole model in its image models.
    model, plan = isoflop.transform(
        model,
        isoflop.SparseWide(sparsity=sparsity),
        example_inputs=inputs,
        scope="model" if case.kind == "image" else "layers",
    )
    params = sum(p.numel() for p in model.parameters())
    masked = sum(layer.numel for layer in plan.sparse_layers)
    nnz = params - masked + sum(layer.nnz for layer in plan.sparse_layers)
    if sparsity == 0:
        masked = 0

    state = params * (WEIGHT + GRADIENT + OPTIMIZER[case.kind]) + masked * MASK
    activations = activation_bytes(case, model, inputs) * case.batch / case.gpus
    # Two gathered groups, the gradient of one, and its 32-bit form on the way to be summed.
    gathering = largest_group(model) * (3 * HALF + GRADIENT)
    share = (case.gpus - 1) / case.gpus
    # Of DDP two passes of a ring; of FSDP2 two gatherings in 16 bits and one sum: the same bytes.
    sent = 2 * share * params * GRADIENT
    bandwidth = NODE_BANDWIDTH if case.gpus <= GPUS_PER_NODE else NETWORK_BANDWIDTH
    flops = 6 * case.batch / (case.gpus * PEAK_FLOPS * UTILISATION[case.kind])
    return Estimate(
        params=params,
        nnz=nnz,
        activations=activations,
        ddp=state + params * (BUCKET + HALF) + activations,
        fsdp=state / case.gpus + gathering + activations,
        host=GPUS_PER_NODE * (params * WEIGHT + masked * MASK),
        sent=sent,
        sent_values=sent * nnz / params,
        sending=sent / (bandwidth * BANDWIDTH_SHARE),
        computing=flops * plan.unmasked_macs,
        computing_values=flops * plan.macs,
        steps=samples // case.batch,
    )


def number(value: float) -> str:
    """Return a number in three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def fits(size: float) -> str:
    """Return gigabytes, struck out if a device has less."""
    text = f"{size / 1e9:,.1f}"
    return text if size <= MEMORY else f"~~{text}~~"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    memory, time = [], []
    for case in CASES:
        for sparsity in case.sparsities:
            found = estimate(case, sparsity)
            name = f"{case.model} {f'{sparsity:.0%}' if sparsity else 'dense'}"
            memory.append(
                [
                    name,
                    f"{found.params / 1e6:,.0f}",
                    f"{found.nnz / 1e6:,.0f}",
                    str(case.gpus),
                    f"{case.batch // case.gpus}",
                    f"{found.activations / 1e9:,.1f}",
                    fits(found.ddp),
                    fits(found.fsdp),
                    f"{found.host / 1e9:,.0f}",
                ]
            )
            time.append(
                [
                    name,
                    number(found.sent / 1e9),
                    f"{found.sent_values / found.sent:.2f}",
                    number(found.sending),
                    number(found.computing),
                    number(found.computing_values),
                    f"{found.steps:,}",
                    number(found.hours),
                    number(found.hours_values),
                ]
            )
    for field in ("PEAK_FLOPS", "NODE_BANDWIDTH", "NETWORK_BANDWIDTH", "BANDWIDTH_SHARE"):
        print(f"{field} = {globals()[field]:g}")
    print(f"UTILISATION = {UTILISATION}\n")
    print(
        table(
            [
                "model",
                "parameters (M)",
                "non-zeros (M)",
                "GPUs",
                "samples per GPU",
                "activations (GB)",
                "DDP (GB)",
                "FSDP2 (GB)",
                "host, building (GB)",
            ],
            memory,
        )
    )
    print()
    print(
        table(
            [
                "model",
                "sent per step (GB)",
                "values only ÷ dense",
                "sending (s)",
                "computing (s)",
                "zeros skipped (s)",
                "steps",
                "hours",
                "hours, zeros neither computed nor sent",
            ],
            time,
        )
    )


if __name__ == "__main__":
    main()
