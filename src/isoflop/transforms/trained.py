"""Whether a model shows that it was trained."""

import math
import re

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from isoflop.transforms.buffers import constant

_NORM_CLASS = re.compile(r"Norm(Act)?(\dd)?$")


def sign_of_training(model: nn.Module) -> str | None:
    """Return what shows that a model was trained, or None if nothing does.

    Statistics that have been updated show it, gains of a normalisation that differ, and weights that
    no initialisation draws. Frozen parameters, and models on the meta device, show nothing.
    """
    for path, module in model.named_modules():
        sign = _sign_of_norm(module)
        if sign is not None:
            return f"{path or type(model).__name__} ({type(module).__name__}) {sign}"
    layers = {
        path: module
        for path, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, _ConvNd)) and _has_values(module)
    }
    changed = [path for path, layer in layers.items() if _is_changed(layer)]
    # A model may draw a layer in a way of its own; hardly one draws the half of them so.
    if len(changed) > 1 and 2 * len(changed) >= len(layers):
        return f"{changed[0]} and others have values that no initialisation draws"
    return None


def _sign_of_norm(module: nn.Module) -> str | None:
    trained = [p for p in module._parameters.values() if p is not None and p.requires_grad]
    frozen = not trained and any(p is not None for p in module._parameters.values())
    if isinstance(module, _NormBase) and not frozen:
        batches = module.num_batches_tracked
        if batches is not None and not batches.is_meta and int(batches) > 0:
            return f"has seen {int(batches):,} batches in training"
        for name, initial in (("running_mean", 0.0), ("running_var", 1.0)):
            statistic = module._buffers.get(name)
            if (
                statistic is not None
                and not statistic.is_meta
                and bool((statistic != initial).any())
            ):
                return f"has a {name} that was updated"
    # Some models draw the gains and shifts of BatchNorm, whose statistics tell anyway.
    tells = isinstance(module, _NormBase) and module.num_batches_tracked is not None
    if not tells and _NORM_CLASS.search(type(module).__name__):
        name = "weight" if module._parameters.get("bias") is None else "bias"
        parameter = module._parameters.get(name)
        if _is_readable(parameter) and constant(parameter) is None:
            return f"has a {name} whose values differ"
    return None


def _is_readable(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad and not parameter.is_meta


def _has_values(layer: nn.Module) -> bool:
    """Tell whether a layer has enough trained weights for a statistic."""
    weight = layer._parameters.get("weight")
    return (
        _is_readable(weight) and weight is not None and weight.numel() >= 16 * max(16, len(weight))
    )


def _is_changed(layer: nn.Module) -> bool:
    """Tell whether weight or bias of a layer have values that no initialisation draws."""
    weight = layer.get_parameter("weight").detach().float()
    values = weight - weight.mean()
    variance = values.square().mean()
    if variance == 0:
        return False
    # Uniform values have a kurtosis of 1.8 and reach √3 standard deviations, those of a normal
    # distribution cut at two deviations 2.4 and 2.3, those of a whole one 3 and more.
    kurtosis = ((values**4).mean() / variance.square()).item()
    largest = (values.abs().max() / variance.sqrt()).item()
    error = 6 * math.sqrt(24 / weight.numel())
    if kurtosis > 3.5 + error:
        return True
    light = kurtosis < min(2.6, 3 - error)
    if light and largest > (1.9 if kurtosis < 2.2 else 2.4):
        return True
    bias = layer._parameters.get("bias")
    if not _is_readable(bias) or bias is None or bias.numel() < 16 or constant(bias) is not None:
        return False
    spread = bias.detach().float().square().mean().sqrt().item()
    # PyTorch draws biases as it does weights; some models draw them of 1e-6.
    default = 1 / math.sqrt(3 * weight[0].numel())
    return spread > 1e-5 and abs(spread / default - 1) > 3 / math.sqrt(bias.numel())
