"""Tiny configurations of the text architectures of transformers, made by field name."""

import contextlib
from typing import Any

from torch import nn

from isoflop.errors import IsoflopError
from isoflop.optional import require
from tools.zoo.families import FAMILIES, UNFIT
from tools.zoo.sizes import AT_MOST, HEADS, LAYERS, PER_LAYER, SIZES, TOKEN_IDS, VOCAB

MAPPINGS = ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM")
"""The kinds of language models, the preferred first."""


def text_architectures() -> list[str]:
    """Return every model type of transformers that has a language-model head."""
    auto = require("transformers.models.auto.modeling_auto", "text")
    return sorted(
        {name for kind in MAPPINGS for name in getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES")}
    )


def tiny_model(model_type: str) -> nn.Module:
    """Build the language model of a model type: causal, else masked, else encoder-decoder.

    Raises:
        IsoflopError: The type is unknown, or no language model by itself.
    """
    if model_type in UNFIT:
        raise IsoflopError(f"no language model by itself, as {UNFIT[model_type]}: {model_type!r}.")
    transformers = require("transformers", "text")
    config = tiny_config(model_type)
    for kind in MAPPINGS:
        mapping = getattr(transformers, f"MODEL_FOR_{kind}_MAPPING")
        if type(config) in mapping:
            model_class = mapping[type(config)]
            if not isinstance(config, model_class.config_class):
                # The language model of one that also sees or hears.
                config = config.get_text_config(decoder=True)
            return model_class._from_config(config)
    raise IsoflopError(f"transformers has no language model of the type {model_type!r}.")


def tiny_config(model_type: str) -> Any:
    """Return a small configuration of a model type.

    Raises:
        IsoflopError: The type is unknown.
    """
    transformers = require("transformers", "text")
    if model_type not in transformers.CONFIG_MAPPING:
        raise IsoflopError(f"{model_type!r} is no model type of transformers.")
    return _shrunk(transformers.CONFIG_MAPPING[model_type])


def _shrunk(config_class: Any, family: dict[str, Any] | None = None, example: Any = None) -> Any:
    """Return a small configuration of a class.

    Args:
        config_class: The class.
        family: Values of fields that the rules do not get right, besides those of `FAMILIES`.
        example: A configuration of that class, by default the class's own.
    """
    family = {**FAMILIES.get(getattr(config_class, "model_type", ""), {}), **(family or {})}
    if example is None:
        with contextlib.suppress(Exception):  # a few have no valid default
            example = config_class()
    default = dict(vars(example)) if example is not None else {}
    parts = getattr(config_class, "sub_configs", None) or {}
    values = {
        name: small
        for name, value in default.items()
        if name not in parts and (small := _small(name, value)) is not None
    }
    if "qk_rope_head_dim" in default:
        values |= _latent_attention(default)
    values |= {name: value for name, value in family.items() if name not in parts}
    for name, part_class in parts.items():
        part = default.get(name)
        if part is None and name not in family:
            continue
        specs = getattr(config_class, "sub_configs_defaults", {})
        if part is None and name in specs:
            part = specs[name].default_config
        part_class = type(part) if hasattr(part, "to_dict") else part_class
        values[name] = _shrunk(part_class, family.get(name), part).to_dict()
    return config_class(**values)


def _latent_attention(default: dict[str, Any]) -> dict[str, int]:
    """Return the fields that differ where keys and values are made of a latent vector.

    Every head has its own then, and the size of a head is that of its rotated part.
    """
    values = {"head_dim": SIZES["qk_rope_head_dim"], "num_key_value_heads": HEADS}
    return {name: value for name, value in values.items() if default.get(name) is not None}


def _small(name: str, value: Any) -> Any:
    """Return the small value of a field, or None to leave it."""
    if name == "use_cache":
        return False
    if name.endswith("_token_id"):
        return _token(name, value)
    if isinstance(value, int) and not isinstance(value, bool) and name in SIZES:
        return min(value, SIZES[name]) if name in AT_MOST else SIZES[name]
    if isinstance(value, (list, tuple)) and name in PER_LAYER and len(value) > LAYERS:
        return _cut(list(value))
    return None


def _cut(values: list[Any]) -> list[Any]:
    """Return as many of the values as there are layers, of different kinds where there are."""
    texts = [repr(value) for value in values]
    first = sorted(texts.index(kind) for kind in dict.fromkeys(texts))
    return [values[i] for i in first[:LAYERS]] if len(first) > 1 else values[:LAYERS]


def _token(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in TOKEN_IDS:
        return [TOKEN_IDS[name]] if isinstance(value, list) else TOKEN_IDS[name]
    # Tokens that stand for images and the like: different ones, which the inputs do not use.
    return VOCAB - 1 - sum(map(ord, name)) % 20 if isinstance(value, int) else None
