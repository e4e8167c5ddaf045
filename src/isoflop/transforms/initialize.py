"""Fresh weights for a transformed model."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from isoflop.errors import WideningError
from isoflop.flops.copies import contained_tensors, owned_tensors
from isoflop.flops.rules import rule_of
from isoflop.plan import LayerPlan
from isoflop.surgery import weight_sides
from isoflop.transforms.buffers import constant, resized

_KAIMING = math.sqrt(2.0)
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

    Weights that multiply are normal. Their variance times their fan is that of the dense model's
    weight of the same name, as it is, so that a model whose authors chose small weights, as those of
    transformers do, starts as it would; a weight that the dense model does not have, or has not got
    values of, is Kaiming normal. The fan is the fan-out for convolutions (paper, appendix C.1),
    transposed ones too, and the fan-in otherwise, and that of a sparse weight counts the connections
    that are left, so that the variance of activations is what it would be in a dense layer; the
    paper ignores the zeros instead. Embeddings keep their spread. A parameter that is constant in
    the dense model, such as a scale that starts at zero, keeps its constant. The global random state
    is left alone.

    What no optimizer trains is not drawn: frozen parameters, buffers and plain tensors keep their
    content, and get it at another width where it tells what it is there, see `resized`. Statistics of
    a frozen normalisation stay too.

    Args:
        model: The model, on any device; on the meta device nothing happens.
        dense: The dense model, read for constants, spreads and fans.
        layers: The planned weights by name.
        gains: Gains of weights by name, where not `sqrt(2)`, if the dense model has no others.
        active_fan: Whether zeros count.
        seed: Seed of the draw.

    Raises:
        WideningError: The content of a frozen parameter, a buffer or a plain tensor at another width
            is not known.
    """
    old = _tensors(dense)
    frozen = _frozen_modules(dense)
    gains = _gains(dense, layers, gains)
    # Tensors that several modules share are drawn once, and as weights if they are planned.
    drawn = {model.get_parameter(name) for name in layers}
    _clear_caches(model)
    fixed = {p: p.detach().clone() for p in model.parameters() if not p.requires_grad}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            _initialize_module(module, path, old, layers, gains, active_fan, drawn)
            _fill_buffers(module, path, old, keep_statistics=_lies_in(path, frozen))
        # A module may have reset the parameters of its children too.
        for parameter, content in fixed.items():
            parameter.copy_(content)
        for module in model.modules():
            _rebuild(module)
        _fill_plain(model, old)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        (f"{path}.{name}" if path else name): tensor
        for _, path, name, tensor in (*owned_tensors(model), *contained_tensors(model))
    }


def _frozen_modules(model: nn.Module) -> set[str]:
    """Return the paths of the modules that have parameters, all of which are frozen."""
    frozen = set()
    for path, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            frozen.add(path)
    return frozen


def _lies_in(path: str, modules: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts) + 1))


def _gains(
    dense: nn.Module, layers: Mapping[str, LayerPlan], gains: Mapping[str, float]
) -> dict[str, float]:
    """Return the gains by which the weights of the dense model were drawn, if not by those given."""
    found = dict(gains)
    for module, path, attribute, weight in owned_tensors(dense):
        name = f"{path}.{attribute}" if path else attribute
        if name not in layers or weight.ndim < 2 or weight.is_meta or constant(weight) is not None:
            continue
        gain = weight.float().std().item() * math.sqrt(_fan(module, weight))
        # Samples of as many normal numbers differ by that much.
        error = 3 / math.sqrt(2 * weight.numel())
        if abs(gain / gains.get(name, _KAIMING) - 1) > error:
            found[name] = gain
    return found


def _clear_caches(model: nn.Module) -> None:
    """Let modules forget what they keep of their old weights between evaluations.

    By convention they do when training begins, as LeViT with its attention biases.
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module, training in modes.items():
        module.training = training


@torch.no_grad()
def fill_frozen(model: nn.Module, dense: nn.Module) -> None:
    """Give the frozen parameters of `model` the content that they have in the dense model.

    Raises:
        WideningError: A frozen parameter has another size, and its content there is not known.
    """
    old = _tensors(dense)
    for module, path, name, tensor in owned_tensors(model):
        parameter = module._parameters.get(name)
        if parameter is not None and parameter is tensor and not parameter.requires_grad:
            _keep(module, f"{path}.{name}" if path else name, "frozen parameter", tensor, old)


def _fill_buffers(
    module: nn.Module, path: str, old: Mapping[str, Tensor], *, keep_statistics: bool
) -> None:
    prefix = f"{path}." if path else ""
    for name, buffer in module._buffers.items():
        if buffer is None or buffer.is_meta:
            continue
        before = old.get(prefix + name)
        same = before is not None and before.shape == buffer.shape
        statistic = isinstance(module, _NORMS) and name in _STATISTICS
        if statistic and not keep_statistics:
            buffer.fill_(_STATISTICS[name])
        elif not same:
            _keep(module, prefix + name, "frozen statistic" if statistic else "buffer", buffer, old)


def _fill_plain(model: nn.Module, old: Mapping[str, Tensor]) -> None:
    """Fill tensors that are neither parameters nor buffers, such as those of lists."""
    registered = {id(t) for t in (*model.parameters(), *model.buffers())}
    for module, path, name, tensor in (*owned_tensors(model), *contained_tensors(model)):
        key = f"{path}.{name}" if path else name
        if id(tensor) not in registered and key in old and old[key].shape != tensor.shape:
            _keep(module, key, "plain tensor", tensor, old)


def _keep(
    module: nn.Module, name: str, noun: str, tensor: Tensor, old: Mapping[str, Tensor]
) -> None:
    """Give a tensor that nothing trains the content that it had, at its size.

    Raises:
        WideningError: That content is not known.
    """
    before = old.get(name)
    if tensor.is_meta or before is None or _follows(tensor, before):
        return
    same = before.shape == tensor.shape
    content = before if same else resized(before, tuple(tensor.shape))
    if content is not None:
        tensor.copy_(content)
    elif rule_of(module).rebuild is None:
        kind = type(module).__name__
        trained = (
            "Unfreeze it (`requires_grad_(True)`) if it may be drawn anew and trained; s"
            if noun.startswith("frozen")
            else "S"
        )
        raise WideningError(
            f"The {noun} {name!r} has the size of a width, and its content at another width "
            f"is not known: {tuple(before.shape)} became {tuple(tensor.shape)}, and it is no constant, "
            f"no frequencies and no sinusoids. {trained}ay how to fill it with "
            f"`isoflop.register_widening_rule({kind}, rebuild=...)`, or that its size must stay with "
            "`constants=(...)`; or use a transform that keeps widths, such as SparseParallel."
        )


def _follows(tensor: Tensor, before: Tensor | None) -> bool:
    """Tell whether a tensor holds a number that may have followed a width, in all of its elements."""
    return constant(before) is not None and constant(tensor) is not None


def _rebuild(module: nn.Module) -> None:
    rebuild = rule_of(module).rebuild
    if rebuild is not None and not any(t.is_meta for t in module.state_dict().values()):
        rebuild(module)


def _initialize_module(
    module: nn.Module,
    path: str,
    old: Mapping[str, Tensor],
    layers: Mapping[str, LayerPlan],
    gains: Mapping[str, float],
    active_fan: bool,
    drawn: set[nn.Parameter],
) -> None:
    """Draw the parameters that are trained."""
    prefix = f"{path}." if path else ""
    everything = {name: p for name, p in module._parameters.items() if p is not None}
    trained = {name: p for name, p in everything.items() if p.requires_grad}
    planned = {name: layers[prefix + name] for name in trained if prefix + name in layers}
    own = {name: p for name, p in trained.items() if name in planned or p not in drawn}
    drawn.update(own.values())
    numbers = {n: constant(p) for n, p in own.items() if _follows(p, old.get(prefix + n))}
    # One that shares a part of its parameters would draw that again.
    reset = getattr(module, "reset_parameters", None) if len(own) == len(trained) else None
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
            gain = gains.get(prefix + name, _KAIMING)
            std = gain / math.sqrt(max(1.0, _fan(module, parameter) * density))
            nn.init.normal_(parameter, std=std)
            continue
        before = old.get(prefix + name)
        value = numbers.get(name, constant(before))
        if value is not None:
            parameter.fill_(value)
        elif isinstance(module, _NORMS):
            parameter.fill_(1.0 if name == "weight" else 0.0)
        elif parameter.ndim == 1 and (planned or name == "bias"):
            parameter.zero_()
        elif isinstance(module, nn.Embedding) and before is not None and not before.is_meta:
            # The row of the padding stays zero.
            parameter *= before.float().std() / parameter.float().std()
        elif not callable(reset) or name in unset:
            _like(parameter, before)


def _fan(module: nn.Module, weight: Tensor) -> int:
    if weight.ndim < 2:
        return weight.numel()
    if isinstance(module, _ConvNd):
        # How many outputs one input reaches, whichever way round the weight is stored.
        return module.out_channels // module.groups * math.prod(weight.shape[2:])
    _, inputs = weight_sides(module, weight)
    return weight.shape[inputs]


def _like(parameter: Tensor, old: Tensor | None) -> None:
    """Draw a parameter that no module knows how to reset with the spread that it had."""
    if old is None or old.is_meta:
        nn.init.normal_(parameter, std=0.02)
    else:
        values = old.float()
        spread = values.std().item() if values.numel() > 1 else 0.0
        nn.init.normal_(parameter, mean=values.mean().item(), std=spread)
