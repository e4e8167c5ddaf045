"""Models and example inputs by spec, for real or on the meta device."""

import contextlib
from typing import Any

import torch
from torch import nn

from isoflop.models import build_model, default_example_shape
from isoflop.zoo.tiny import TOKENS, VOCAB, tiny_model

TARGET_TOKENS = 14
"""Tokens of the decoder of an encoder-decoder, fewer than `TOKENS` so that they differ."""


def build(spec: str, *, meta: bool) -> nn.Module:
    """Build the model that `spec` names; `transformers:TYPE` is a tiny one of that type."""
    source, _, name = spec.partition(":")
    if source != "transformers":
        return build_model(spec, meta=meta)
    with torch.device("meta") if meta else contextlib.nullcontext():
        return tiny_model(name)


def inputs_for(spec: str, model: nn.Module, *, batch: int = 1, meta: bool = False) -> Any:
    """Return example inputs of `batch` samples for the model that `spec` names."""
    device = "meta" if meta else None
    source, _, name = spec.partition(":")
    if source == "transformers":
        tokens = _tokens(batch, TOKENS, device)
        config: Any = model.config
        inputs = {"input_ids": tokens}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = _tokens(batch, TARGET_TOKENS, device)
        return inputs
    if spec == "torchvision:inception_v3":
        shape: tuple[int, ...] = (1, 3, 299, 299)
    elif source in ("timm", "torchvision", "isoflop"):
        shape = default_example_shape(spec, model)
    else:
        shape = getattr(model, "example_shape", None) or default_example_shape(spec, model)
    return torch.zeros(batch, *shape[1:], device=device) if meta else torch.randn(batch, *shape[1:])


def _tokens(batch: int, length: int, device: str | None) -> torch.Tensor:
    if device == "meta":
        return torch.zeros(batch, length, dtype=torch.long, device=device)
    # The first few numbers are the padding and the like.
    return torch.randint(3, VOCAB - 30, (batch, length))
