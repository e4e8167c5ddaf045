"""Folding BatchNorm into the layer before it, in a graph of the model where there is one."""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from isoflop.errors import KernelError
from isoflop.kernels.autotune.inputs import Reference, is_untouched
from isoflop.kernels.convert import densify_
from isoflop.kernels.fuse.graph import (
    input_of,
    module_of,
    replace_node,
    shape_at,
    single_calls,
    traced,
)
from isoflop.surgery import recast, replace_modules

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
"""Which normalisation can be folded into a layer. Subclasses may compute something else."""

_RANKS: dict[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
"""Dimensions of a layer's output of which BatchNorm takes the second for the channels."""

_IDENTITIES = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
"""Modules that do nothing in evaluation."""


def masked_copy(reference: Reference) -> nn.Module:
    """Return a new copy of the model with masked layers in the place of compressed ones."""
    return densify_(reference.copy())


def folded_graph(reference: Reference) -> fx.GraphModule | None:
    """Return the graph of a masked copy, in which BatchNorm is part of the layers before it.

    Masks stay beside their weights; folding scales weights and leaves zeros zero. Nobody has compared
    yet what the graph computes.

    Returns:
        The graph, or None if the model cannot be traced.
    """
    graph = traced(_split_norms(masked_copy(reference)), reference.inputs)
    if graph is not None:
        _drop_identities(graph)
        _fold_graph(graph)
        graph.delete_all_unused_submodules()
        graph.recompile()
    return graph


def folded_sequences(reference: Reference) -> nn.Module:
    """Return a masked copy in which BatchNorm is folded inside of `nn.Sequential`.

    Nobody has compared yet what it computes.
    """
    model = masked_copy(reference)
    owners = Counter(id(child) for module in model.modules() for child in module.children())
    new: dict[nn.Module, nn.Module] = {}
    for sequence in model.modules():
        if not _is_sequence(sequence):
            continue
        members: dict[str, Any] = dict(sequence._modules)
        for (name, layer), (norm_name, norm) in itertools.pairwise(sequence._modules.items()):
            if layer is None or norm is None or not owners[id(layer)] == owners[id(norm)] == 1:
                continue
            fused = None if type(layer) is nn.Linear else _fused(layer, norm)
            if fused is not None:
                members[name], members[norm_name] = fused, nn.Identity()
        if members != sequence._modules:
            new[sequence] = recast(sequence, FoldedSequential)
            new[sequence]._modules = members
    for sequence in new.values():  # they lie inside of each other
        replace_modules(sequence, new)
    return replace_modules(model, new)


class FoldedSequential(nn.Sequential):
    """Layers with BatchNorm folded into them: right one after the other, and wrong one by one."""

    def forward(self, input: Any) -> Any:
        """Apply one layer after the other."""
        for module in self._modules.values():
            assert module is not None
            input = module(input)
        return input

    def __iter__(self) -> Iterator[nn.Module]:
        raise self._alone()

    def __getitem__(self, idx: Any) -> Any:
        raise self._alone()

    def _alone(self) -> KernelError:
        return KernelError(
            "isoflop.freeze has folded BatchNorm inside of an nn.Sequential, since the forward pass on "
            "the example inputs called it as a whole; now it takes out single layers. Freeze the model "
            "with example inputs for which it does so."
        )


def _is_sequence(module: nn.Module) -> bool:
    """Tell whether a module does nothing but call its members in order, if called at all."""
    classes = type(module).__mro__
    if nn.Sequential not in classes or not is_untouched(module):
        return False
    own = {name for kind in classes[: classes.index(nn.Sequential)] for name in vars(kind)}
    # Members with names of their own can be called by them.
    return not {n for n in own if not n.startswith("__") or n in _CALLS} and all(
        name.isdecimal() for name in module._modules
    )


_CALLS = ("__call__", "__iter__", "__getitem__", "__getattr__", "__getattribute__")


def _split_norms(model: nn.Module) -> nn.Module:
    """Replace timm's normalisations with an activation inside by both, one after the other."""
    new: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        act, drop = getattr(module, "act", None), getattr(module, "drop", None)
        ours = isinstance(module, nn.BatchNorm2d) and type(module) is not nn.BatchNorm2d
        if ours and isinstance(act, nn.Module) and isinstance(drop, nn.Module):
            if not is_untouched(module):
                continue
            norm = recast(module, nn.BatchNorm2d)
            norm._modules.clear()
            new[module] = nn.Sequential(norm, drop, act)
    return replace_modules(model, new)


def _drop_identities(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        module, before = module_of(graph, node), input_of(node)
        if module is not None:
            idle = type(module) in _IDENTITIES and is_untouched(module) and not module.training
        else:
            idle = node.target is F.dropout and node.kwargs.get("training") is False
        if idle and before is not None:
            replace_node(graph, node, before)


def _fold_graph(graph: fx.GraphModule) -> None:
    single = single_calls(graph)
    for node, norm in single.items():
        before = input_of(node)
        if before is None or before not in single or len(before.users) > 1:
            continue
        if len(node.args) > 1 or node.kwargs:
            continue
        layer, shape = single[before], shape_at(before)
        # Of more than two dimensions, BatchNorm1d normalises the second, not the last.
        if shape is None or len(shape) != _RANKS.get(type(layer)):
            continue
        fused = _fused(layer, norm)
        if fused is not None:
            graph.set_submodule(str(before.target), fused)
            single[before] = fused
            replace_node(graph, node, before)


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Return `layer` with `norm` in it, or None if that cannot be."""
    if type(norm) is not _NORMS.get(type(layer)) or not (
        is_untouched(layer) and is_untouched(norm)
    ):
        return None
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    mean, variance = norm.running_mean, norm.running_var
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    if norm.training or mean is None or variance is None or weight is None:
        return None
    if len(weight) != len(mean) or not weight.is_floating_point():
        return None
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = torch.rsqrt(variance + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -mean if bias is None else bias - mean
        shift = shift * scale if norm.bias is None else shift * scale + norm.bias
        new.weight = _parameter(weight * scale.view(-1, *[1] * (weight.ndim - 1)), weight)
        new.bias = _parameter(shift, weight)
    return new


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype), requires_grad=False)
