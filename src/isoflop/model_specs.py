"""Model specifications: one string that names a model of any library.

`timm:NAME`, `torchvision:NAME`, `isoflop:NAME`, `hf:NAME` (architecture only, never weights) or
`package.module:function`.
"""

import contextlib
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.model_registry import MODELS
from isoflop.optional import require
from isoflop.registry import did_you_mean, find_name

FORMS = "timm:NAME, torchvision:NAME, isoflop:NAME, hf:NAME or package.module:function"

HF_TOKENS = 128
"""Tokens of the example input of a language model."""


def build_model(
    spec: str,
    num_classes: int | None = None,
    *,
    in_channels: int | None = None,
    base_width: int | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    backbone: nn.Module | None = None,
    meta: bool = False,
) -> nn.Module:
    """Build a freshly initialised model.

    Args:
        spec: `timm:NAME`, `torchvision:NAME`, `isoflop:NAME`, `hf:NAME` or
            `package.module:function`.
        num_classes: Outputs of the classifier; None leaves the model's own default.
        in_channels: Channels of the images; None leaves the model's own default.
        base_width: Channels of the first stage, where the model can be scaled so.
        vocab_size: Number of different tokens of a language model; likewise.
        context: Longest sequence of a language model; likewise.
        backbone: A classifier whose layers but the last the model begins with, where it can; they are
            used themselves, not copied.
        meta: Build without memory for the weights, which is enough to count and to plan; a model
            whose constructor needs values, such as torchvision's RegNet, is built with them.

    Raises:
        UnknownNameError: No model has that name; the message lists known ones.
        IsoflopError: The library is not installed, or the model does not take an option.
    """
    source, name = split_spec(spec)
    if num_classes is not None and num_classes < 0:
        raise IsoflopError(f"num_classes must not be negative, not {num_classes}.")
    options = {
        key: value
        for key, value in {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "base_width": base_width,
            "vocab_size": vocab_size,
            "context": context,
            "backbone": backbone,
        }.items()
        if value is not None
    }
    build = _SOURCES.get(source, _from_function)
    if meta:
        # Some constructors compute their sizes with tensors, whose values are not there to read.
        with contextlib.suppress(NotImplementedError), torch.device("meta"):
            return build(spec, name, options)
    return build(spec, name, options)


def default_example_shape(spec: str, model: nn.Module | None = None) -> tuple[int, ...]:
    """Return the shape of a batch of one sample for the model that `spec` names.

    Args:
        spec: As for `build_model`.
        model: The model, where it has been built already; it may say its input size itself.

    Raises:
        IsoflopError: The shape is not known and must be given.
    """
    source, name = split_spec(spec)
    if source == "isoflop":
        return (1, *MODELS.get(name).input_shape)
    if source == "torchvision":
        return (1, 3, 224, 224)
    if source == "hf":
        return (1, HF_TOKENS)
    cfg = getattr(model, "default_cfg", None)
    if source == "timm" and cfg is None:
        cfg = require("timm", "vision").get_pretrained_cfg(
            _timm_name(spec, name), allow_unregistered=False
        )
        cfg = cfg.to_dict() if cfg is not None else None
    if isinstance(cfg, dict) and cfg.get("input_size"):
        return (1, *cfg["input_size"])
    raise IsoflopError(
        f"The input shape of {spec!r} is not known. Give it, for instance `--input 1,3,224,224`."
    )


def example_inputs(spec: str, shape: tuple[int, ...], *, meta: bool = False) -> Tensor:
    """Return zeros that the model takes: token numbers for language models, else an image.

    Args:
        spec: As for `build_model`; models of `hf:` are taken for language models.
        shape: Shape of the batch.
        meta: Make them on the meta device.
    """
    dtype = torch.long if takes_tokens(spec) else torch.get_default_dtype()
    return torch.zeros(shape, dtype=dtype, device="meta" if meta else None)


def takes_tokens(spec: str) -> bool:
    """Return whether the model that `spec` names takes token numbers, as far as the name tells."""
    source, name = split_spec(spec)
    return source == "hf" or (source == "isoflop" and MODELS.get(name).kind == "tokens")


def split_spec(spec: str) -> tuple[str, str]:
    """Return the library, or the module, and the name that a model specification consists of.

    Raises:
        UnknownNameError: It is none.
    """
    source, colon, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not colon or not source or not name:
        known = find_name(str(spec), MODELS.names())
        hint = f" Did you mean 'isoflop:{known}'?" if known else ""
        raise UnknownNameError(f"{spec!r} names no model.{hint} Write {FORMS}.")
    return find_name(source, _SOURCES) or source, name


def _unknown(spec: str, name: str, known: list[str], where: str) -> UnknownNameError:
    close = difflib.get_close_matches(name, known, n=8, cutoff=0.5)
    few = ", ".join(close or known[:8])
    return UnknownNameError(
        f"Unknown model {spec!r}.{did_you_mean(name, known)} Known: {few}, … ({len(known)} in {where})."
    )


def _not_taken(spec: str, option: str) -> IsoflopError:
    return IsoflopError(f"{spec!r} does not take {option}; leave it out or use another model.")


def _rename(spec: str, options: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    renamed = {}
    for key, value in options.items():
        target = names.get(key)
        if target is None:
            raise _not_taken(spec, key)
        renamed[target] = value
    return renamed


def _check_options(spec: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    signature = inspect.signature(function)
    accepted = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for key in options:
            if key not in accepted:
                raise _not_taken(spec, key)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise IsoflopError(
            f"{spec!r} cannot be called: {error}. Give a function whose arguments have defaults."
        ) from error


def _from_isoflop(spec: str, name: str, options: dict[str, Any]) -> nn.Module:
    entry = MODELS.get(name)
    _check_options(spec, entry.build, options)
    return entry(**options)


def _from_timm(spec: str, name: str, options: dict[str, Any]) -> nn.Module:
    timm = require("timm", "vision")
    name = _timm_name(spec, name)
    names = {"num_classes": "num_classes", "in_channels": "in_chans"}
    return timm.create_model(name, pretrained=False, **_rename(spec, options, names))


def _timm_name(spec: str, name: str) -> str:
    timm = require("timm", "vision")
    if timm.is_model(name):
        return name
    # Tags, as in resnet18.a1_in1k, follow the name.
    base, dot, tag = name.partition(".")
    found = find_name(base, timm.list_models())
    if found is None:
        raise _unknown(spec, base, timm.list_models(), "timm.list_models()")
    return found + dot + tag


def _from_torchvision(spec: str, name: str, options: dict[str, Any]) -> nn.Module:
    models = require("torchvision.models", "vision")
    known = models.list_models()
    found = find_name(name, known)
    if found is None:
        raise _unknown(spec, name, known, "torchvision.models.list_models()")
    name = found
    builder = models.get_model_builder(name)
    parameters = inspect.signature(builder).parameters
    options = _rename(spec, options, {"num_classes": "num_classes"})
    options["weights"] = None
    if "weights_backbone" in parameters:  # else the backbone's weights would be downloaded
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):  # these warn unless told
        options["init_weights"] = True
    return builder(**options)


def _from_hf(spec: str, name: str, options: dict[str, Any]) -> nn.Module:
    transformers = require("transformers", "text")
    names = {
        "num_classes": "num_labels",
        "vocab_size": "vocab_size",
        "context": "max_position_embeddings",
    }
    options = _rename(spec, options, names)
    if "vocab_size" in options:
        # The defaults are the ends of the vocabulary of the family, which a smaller one lacks.
        last = options["vocab_size"] - 1
        options |= {"bos_token_id": last, "eos_token_id": last, "pad_token_id": None}
    name = find_name(name, list(transformers.CONFIG_MAPPING)) or name
    if name in transformers.CONFIG_MAPPING:  # a family's name needs no download
        config = transformers.AutoConfig.for_model(name, **options)
    else:
        try:
            config = transformers.AutoConfig.from_pretrained(name, **options)
        except OSError as error:
            raise _unknown(
                spec, name, list(transformers.CONFIG_MAPPING), "transformers' own families"
            ) from error
    if "num_labels" in options:
        factory = transformers.AutoModelForSequenceClassification
    elif type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        factory = transformers.AutoModelForCausalLM
    else:
        factory = transformers.AutoModel
    return factory.from_config(config)


def _from_function(spec: str, name: str, options: dict[str, Any]) -> nn.Module:
    module_name = spec.partition(":")[0]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UnknownNameError(
            f"Unknown model {spec!r}: there is no module {module_name!r}."
            f"{did_you_mean(module_name, _SOURCES)} Write {FORMS}."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise _unknown(spec, name, known, module_name)
    _check_options(spec, function, options)
    model = function(**options)
    if not isinstance(model, nn.Module):
        raise IsoflopError(f"{spec!r} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


_SOURCES: dict[str, Callable[[str, str, dict[str, Any]], nn.Module]] = {
    "isoflop": _from_isoflop,
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "hf": _from_hf,
}
