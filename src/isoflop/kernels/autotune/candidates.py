"""Masked layers that have a sparse form, and why others have none."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import KernelError
from isoflop.flops.fakes import unfused
from isoflop.kernels.autotune.inputs import Inputs, Uses, is_untouched, running, undisturbed
from isoflop.kernels.cpu.conv2d import SparseConv2d, symmetric_padding
from isoflop.kernels.cpu.index import BLOCK_ROWS
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.cpu.linear import SparseLinear
from isoflop.masks import named_masks
from isoflop.nests import map_tensors
from isoflop.surgery import is_fan_in_fan_out
from isoflop.transforms.usage import owner_counts

_ADVICE = {
    "Conv1d": "an nn.Conv2d with a kernel of height 1 computes the same",
    "MultiheadAttention": "isoflop.transform takes its projections apart, into layers",
}
"""What to write instead of a layer that has no sparse form, by class."""


@dataclass
class Candidates:
    """The masked layers of a model.

    Attributes:
        layers: Those that have a sparse form, by path.
        skipped: Why other masked weights stay dense, by path of the layer, or by name of the weight
            where that is another than `weight`.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def sparse_layer(layer: nn.Module, mask: Tensor) -> SparseLayer:
    """Return the sparse form of a layer.

    Args:
        layer: A layer for which `why_dense` gives no reason.
        mask: Boolean, shaped like its weight.

    Raises:
        KernelError: There is none.
    """
    reason = why_dense(layer)
    if reason is not None:
        raise KernelError(f"The layer {reason}.")
    groups = getattr(layer, "groups", 1)
    rows = BLOCK_ROWS if _in_blocks(mask.t() if is_fan_in_fan_out(layer) else mask, groups) else 1
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d.from_dense(layer, mask, rows=rows)
    return SparseLinear.from_dense(layer, mask, rows=rows)


def why_dense(layer: nn.Module, parameter: str = "weight") -> str | None:
    """Return why a layer has no sparse form, or None if it has one.

    Args:
        layer: Any module.
        parameter: Name of the parameter that is sparse.
    """
    kind = type(layer).__name__
    supported = isinstance(layer, (nn.Linear, nn.Conv2d)) or is_fan_in_fan_out(layer)
    if not supported or parameter != "weight":
        advice = _ADVICE.get(kind)
        return (
            f"is of class {kind}, for which there are no sparse kernels, only for nn.Linear, nn.Conv2d "
            f"and Hugging Face's Conv1D: it computes at dense speed{f'; {advice}' if advice else ''}"
        )
    if not (is_fan_in_fan_out(layer) or _computes_as_its_base(layer)):
        return f"is of class {kind}, a subclass that computes in its own way, at dense speed"
    if not is_untouched(layer):
        return "has hooks, parametrizations or a forward pass of its own, which would be lost"
    if isinstance(layer, nn.Conv2d) and not symmetric_padding(layer):
        return (
            f"has padding {layer.padding!r} by {layer.padding_mode!r}, and the kernels pad with zeros, "
            "as many on either side; pad in an operation of its own"
        )
    weight = layer.get_parameter("weight")
    if not weight.is_floating_point():
        return f"has weights of {weight.dtype}, and the kernels compute with real numbers"
    return None


def sparse_candidates(model: nn.Module, inputs: Inputs) -> Candidates:
    """Find the masked layers whose weight nothing but their own forward pass uses.

    The model runs once on the inputs, and is left as it was.

    Args:
        model: The model.
        inputs: What it can be run on.
    """
    found = Candidates()
    masked: dict[str, tuple[str, nn.Module]] = {}
    owners = owner_counts(model)
    for name, module, parameter, _ in named_masks(model):
        path, _, _ = name.rpartition(".")
        reason = why_dense(module, parameter)
        if reason is None and owners[id(module._parameters[parameter])] > 1:
            reason = "shares its weight with another layer"
        if reason is None:
            masked[name] = path, module
        else:
            found.skipped[path if parameter == "weight" else name] = reason
    users = _users(model, {n: m.get_parameter("weight") for n, (_, m) in masked.items()}, inputs)
    for name, (path, module) in masked.items():
        others = sorted(users[name] - {path})
        if others:
            user = others[0] or type(model).__name__
            found.skipped[path] = f"has a weight that {user!r} uses too, past its forward pass"
        elif not users[name]:
            found.skipped[path] = "is not called for these inputs"
        else:
            found.layers[path] = module
    return found


def _computes_as_its_base(layer: nn.Module) -> bool:
    """Tell whether a subclass of a layer leaves its computation as it is."""
    base: Any = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    names = ("forward", "__call__", "_conv_forward", "__getattr__", "__getattribute__")
    same = all(getattr(type(layer), n, None) is getattr(base, n, None) for n in names)
    return same and not hasattr(type(layer), "weight") and not hasattr(type(layer), "bias")


def _users(model: nn.Module, weights: dict[str, Tensor], inputs: Inputs) -> dict[str, set[str]]:
    """Return the paths of the modules whose forward pass used each weight."""
    users: dict[str, set[str]] = {name: set() for name in weights}
    args, kwargs = map_tensors(inputs, torch.clone)
    with undisturbed(model), torch.no_grad(), unfused(), _path_stack(model) as paths:
        model.eval()
        with running(model, inputs), Uses(weights.items(), lambda n: users[n].add(paths[-1])):
            model(*args, **kwargs)
    return users


@contextlib.contextmanager
def _path_stack(model: nn.Module) -> Iterator[list[str]]:
    """Keep a list of the paths of the modules that run, the innermost last."""
    stack = [""]
    handles = []
    for path, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)),
            module.register_forward_hook(lambda *_: _leave(stack), always_call=True),
        ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _leave(stack: list[str]) -> None:
    stack.pop()


def _in_blocks(mask: Tensor, groups: int) -> bool:
    """Return whether the non-zeros come in blocks of consecutive outputs."""
    if len(mask) // groups % BLOCK_ROWS:
        return False
    blocks = mask.reshape(len(mask) // BLOCK_ROWS, BLOCK_ROWS, *mask.shape[1:])
    return torch.equal(blocks, blocks[:, :1].expand_as(blocks))
