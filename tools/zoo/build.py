"""Models and example inputs by spec, for real or on the meta device."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.flops.fakes import plain_output
from isoflop.model_specs import build_model, default_example_shape
from isoflop.nests import tensors_in
from isoflop.optional import require
from tools.zoo.sizes import TARGET_TOKENS, TOKENS
from tools.zoo.tiny import tiny_model


def build(spec: str, *, meta: bool, img_size: int | None = None) -> nn.Module:
    """Build the model that `spec` names; `transformers:TYPE` is a tiny one of that type.

    Args:
        spec: The model.
        meta: Build without memory for the weights.
        img_size: Images of another size than its own, for a model of timm that takes the option.
    """
    source, _, name = spec.partition(":")
    with torch.device("meta") if meta else contextlib.nullcontext():
        if source == "transformers":
            return tiny_model(name)
        if source == "timm":
            return _classifier(name, {} if img_size is None else {"img_size": img_size})
        return build_model(spec)


def _classifier(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a model of timm; one that is registered without a head gets one of 1000 classes."""
    timm = require("timm", "vision")
    if not timm.get_pretrained_cfg_value(name, "num_classes"):
        options = {"num_classes": 1000, **options}
    return timm.create_model(name, **options)


def inputs_for(spec: str, model: nn.Module, *, batch: int = 1) -> Any:
    """Return example inputs of `batch` samples, on the device of `model`.

    A model of one's own may say their shape in an attribute `example_shape`.
    """
    meta = any(p.is_meta for p in model.parameters())
    device = "meta" if meta else None
    if spec.startswith("transformers:"):
        config: Any = model.config
        inputs = {"input_ids": _tokens(batch, TOKENS)}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = _tokens(batch, TARGET_TOKENS)
        return inputs
    shape = getattr(model, "example_shape", None) or default_example_shape(spec, model)
    if spec == "torchvision:inception_v3":
        shape = (1, 3, 299, 299)
    return torch.rand(batch, *shape[1:], device=device)


def forward(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the tensors that a forward pass returns."""
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return tensors_in(plain_output(output))


def _tokens(batch: int, length: int) -> Tensor:
    # The first few numbers are the padding and the like, the last stand for images and sounds.
    return torch.randint(4, 100, (batch, length))
