"""Fresh weights for a transformed model."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from isoflop.errors import WideningError
from isoflop.plan import LayerPlan
from isoflop.rules import rule_of
from isoflop.surgery import owned_tensors, weight_sides
from isoflop.transforms.buffers import constant, resized

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_STATISTICS = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}


def initialize(
    model: nn.Module,
    dense: nn.Module,
    layers: Mapping[str, LayerPlan],
    gains: Mapping[str, float],
    *,
    active_fan: bool,
    seed: int,
) -> None:
    """Draw every parameter of `model` anew, in place, and reset its statistics.

    Weights that multiply are Kaiming normal: with the fan-out for convolutions (paper, appendix
    C.1), transposed ones too, and the fan-in otherwise. The fan of a sparse weight is that of the
    connections that are left, so that the variance of activations is what it would be in a dense
    layer; the paper ignores the zeros instead. A parameter that is constant in the dense model,
    such as a scale that starts at zero, keeps its constant. The global random state is left alone.

    Args:
        model: The model, on any device; on the meta device nothing happens.
        dense: The dense model, read for constants and spreads.
        layers: The planned weights by name.
        gains: Gains of weights by name, where not `sqrt(2)`.
        active_fan: Whether zeros count.
        seed: Seed of the draw.
    """
    old = {
        (f"{path}.{name}" if path else name): tensor
        for _, path, name, tensor in owned_tensors(dense)
    }
    _clear_caches(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            _initialize_module(module, path, old, layers, gains, active_fan)


def _clear_caches(model: nn.Module) -> None:
    """Let modules forget what they keep of their old weights between evaluations.

    By convention they do when training begins, as LeViT with its attention biases.
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module, training in modes.items():
        module.training = training


def _initialize_module(
    module: nn.Module,
    path: str,
    old: Mapping[str, Tensor],
    layers: Mapping[str, LayerPlan],
    gains: Mapping[str, float],
    active_fan: bool,
) -> None:
    prefix = f"{path}." if path else ""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    planned = {name: layers[prefix + name] for name in own if prefix + name in layers}
    reset = getattr(module, "reset_parameters", None)
    unset: set[str] = set()
    if own and not planned and callable(reset) and not any(p.is_meta for p in own.values()):
        for parameter in own.values():
            parameter.fill_(math.nan)
        reset()
        # Some modules forget a part of what they own.
        unset = {name for name, parameter in own.items() if parameter.isnan().any()}
    for name, parameter in own.items():
        if parameter.is_meta:
            continue
        if name in planned:
            density = planned[name].density if active_fan else 1.0
            _kaiming(module, parameter, gains.get(prefix + name, math.sqrt(2.0)), density)
            continue
        value = constant(old.get(prefix + name))
        if value is not None:
            parameter.fill_(value)
        elif isinstance(module, _NORMS):
            parameter.fill_(1.0 if name == "weight" else 0.0)
        elif parameter.ndim == 1 and (planned or name == "bias"):
            parameter.zero_()
        elif not callable(reset) or name in unset:
            _like(parameter, old.get(prefix + name))
    rebuild = rule_of(module).rebuild
    for name, buffer in module._buffers.items():
        if buffer is None or buffer.is_meta:
            continue
        if isinstance(module, _NORMS) and name in _STATISTICS:
            buffer.fill_(_STATISTICS[name])
        elif prefix + name in old and old[prefix + name].shape != buffer.shape:
            content = resized(old[prefix + name], tuple(buffer.shape))
            if content is not None:
                buffer.copy_(content)
            elif rebuild is None:
                raise WideningError(
                    f"The buffer {prefix + name!r} has the size of a width, and its content at "
                    "another width is not known: it is no constant, no frequencies and no sinusoids. "
                    "Say how to fill it with `isoflop.register_widening_rule("
                    f"{type(module).__name__}, rebuild=...)`, or use a transform that keeps widths, "
                    "such as SparseParallel."
                )
    if rebuild is not None and not any(t.is_meta for t in module.state_dict().values()):
        rebuild(module)


def _kaiming(module: nn.Module, weight: Tensor, gain: float, density: float) -> None:
    if weight.ndim < 2:
        nn.init.normal_(weight, std=gain / math.sqrt(max(1, weight.numel())))
        return
    if isinstance(module, _ConvNd):
        # How many outputs one input reaches, whichever way round the weight is stored.
        fan = module.out_channels // module.groups * math.prod(weight.shape[2:])
    else:
        _, inputs = weight_sides(module, weight)
        fan = weight.shape[inputs]
    nn.init.normal_(weight, std=gain / math.sqrt(max(1.0, fan * density)))


def _like(parameter: Tensor, old: Tensor | None) -> None:
    """Draw a parameter that no module knows how to reset with the spread that it had."""
    if old is None or old.is_meta:
        nn.init.normal_(parameter, std=0.02)
    else:
        values = old.float()
        nn.init.normal_(parameter, mean=values.mean().item(), std=values.std().item())
