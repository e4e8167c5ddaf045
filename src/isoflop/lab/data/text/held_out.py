"""Text that is not trained on, and how well a model predicts it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

TOKENS_PER_BATCH = 8192
"""Tokens that are predicted at a time, or those of one block."""

_NOTHING = -100


@dataclass(frozen=True)
class HeldOut:
    """Documents to predict, token by token.

    Attributes:
        tokens: An end of text, then the documents, each with an end of text behind it. All tokens
            but the first are predicted, from those before them in their block.
        text_bytes: Length of the documents in UTF-8.
        context: Length of a block.
        skipped: Records that were damaged: `split`, `file` with their number, `reason`.
    """

    tokens: NDArray[np.int32]
    text_bytes: int
    context: int
    skipped: Sequence[dict[str, str]] = ()

    def blocks(self, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, `[blocks, context]`; what is no target is negative.

        Args:
            multiple: What divides the number of blocks.
        """
        count = -(-(len(self.tokens) - 1) // (self.context * multiple)) * multiple
        inputs = torch.zeros(count * self.context, dtype=torch.int32)
        targets = torch.full_like(inputs, _NOTHING)
        tokens = torch.from_numpy(self.tokens)
        inputs[: len(tokens) - 1] = tokens[:-1]
        targets[: len(tokens) - 1] = tokens[1:]
        return inputs.view(count, -1), targets.view(count, -1)

    def evaluate(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Return `loss` (nats per token), `perplexity` and `bits_per_byte`, over all processes."""
        rank, processes = accelerator.process_index, accelerator.num_processes
        inputs, targets = (part[rank::processes] for part in self.blocks(processes))
        size = max(1, TOKENS_PER_BATCH // self.context)
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        model.eval()
        with torch.no_grad():
            for start in range(0, len(inputs), size):
                x = inputs[start : start + size].to(accelerator.device).long()
                y = targets[start : start + size].to(accelerator.device).long()
                total += token_losses(model(x), y).sum(dtype=torch.float64)
        nats = float(accelerator.reduce(total))
        loss = nats / (len(self.tokens) - 1)
        return {
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "loss": loss,
            "bits_per_byte": nats / math.log(2) / self.text_bytes,
        }


def token_losses(outputs: Any, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each token in nats, zero where the target is negative.

    Args:
        outputs: The model's output: logits `[batch, length, vocabulary]`, or an object with them.
        targets: Tokens `[batch, length]`.
    """
    logits = getattr(outputs, "logits", outputs)
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_NOTHING, reduction="none"
    )
