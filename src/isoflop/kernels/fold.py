"""Folding BatchNorm into the layer before it, in a graph of the model where there is one."""

import inspect
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from isoflop.copies import copy_with_tensors
from isoflop.kernels.convert import densify
from isoflop.kernels.inputs import output_tensors, outputs_agree, real_inputs
from isoflop.surgery import ExampleInputs, is_flipped, recast, replace_modules

_SHAPE = "isoflop_shape"

_LEAVES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: nn.Conv1d,
    nn.BatchNorm2d: nn.Conv2d,
    nn.BatchNorm3d: nn.Conv3d,
}
"""Which convolution a normalisation can be folded into."""

_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Modules that do nothing in evaluation."""


def folded(model: nn.Module, example_inputs: ExampleInputs) -> nn.Module:
    """Return a copy for inference, in which each BatchNorm after a layer is part of that layer.

    Masks stay beside their weights; folding scales weights and leaves zeros zero. Sparse layers
    become masked ones.

    Args:
        model: Any module; it is not changed.
        example_inputs: What it takes; see `isoflop.profile`.

    Returns:
        A `torch.fx.GraphModule` where the model can be traced and the trace computes the same, else
        the model's own classes.

    Raises:
        InputError: They are no example inputs.
    """
    copied = copy_with_tensors(model, lambda *args: args[-1].detach().clone())
    copied = _split_norms(densify(copied.eval())).requires_grad_(False)
    args, kwargs = real_inputs(copied, example_inputs)
    expected = output_tensors(copied, args, kwargs)
    graph = _traced(copied, args, kwargs)
    if graph is not None:
        _drop_identities(graph)
        _fold_graph(graph)
        graph.delete_all_unused_submodules()
        graph.recompile()
        if outputs_agree(output_tensors(graph, args, kwargs), expected):
            return graph
    return _fold_sequences(copied)


def shapes_of(graph: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note the shape of every tensor of a graph at its node."""
    inputs = inspect.signature(graph.forward).bind(*args, **kwargs)
    inputs.apply_defaults()
    with torch.no_grad():
        _Shapes(graph).run(*inputs.args)


def shape_at(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of the tensor that `node` makes, or None if it makes no single one."""
    return node.meta.get(_SHAPE)


def single_calls(graph: fx.GraphModule) -> dict[fx.Node, nn.Module]:
    """Return the nodes that call modules which nothing else in the graph calls or reads."""
    calls = {
        node: graph.get_submodule(str(node.target))
        for node in graph.graph.nodes
        if node.op == "call_module"
    }
    counts = Counter(id(module) for module in calls.values())
    read = {str(n.target).rpartition(".")[0] for n in graph.graph.nodes if n.op == "get_attr"}
    return {
        node: module
        for node, module in calls.items()
        if counts[id(module)] == 1 and str(node.target) not in read
    }


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shapes of the tensors at its nodes."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta[_SHAPE] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


class _Tracer(fx.Tracer):
    """Keeps layers and normalisations whole, those of other libraries too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, _LEAVES) or is_flipped(m)
        return leaf or super().is_leaf_module(m, module_qualified_name)


def _traced(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> fx.GraphModule | None:
    """Return the graph of the model for inputs like these, or None if it has none."""
    try:
        signature = inspect.signature(model.forward)
        given = signature.bind(*args, **kwargs).arguments
        left_out = {
            name: parameter.default
            for name, parameter in signature.parameters.items()
            if name not in given and parameter.default is not parameter.empty
        }
        tensors = all(isinstance(value, Tensor) for value in given.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = _Tracer().trace(model, concrete_args=left_out) if tensors else None
        if traced is None:
            return None
        graph = fx.GraphModule(model, traced, type(model).__name__)
        shapes_of(graph, args, kwargs)
    except Exception:  # whatever code that is not made to be traced may raise
        return None
    return graph


def _split_norms(model: nn.Module) -> nn.Module:
    """Replace timm's normalisations with an activation inside by both, one after the other."""
    new: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        act, drop = getattr(module, "act", None), getattr(module, "drop", None)
        ours = isinstance(module, nn.BatchNorm2d) and type(module) is not nn.BatchNorm2d
        if ours and isinstance(act, nn.Module) and isinstance(drop, nn.Module):
            norm = recast(module, nn.BatchNorm2d)
            norm._modules.clear()
            new[module] = nn.Sequential(norm, drop, act)
    return replace_modules(model, new)


def _drop_identities(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            idle = isinstance(graph.get_submodule(str(node.target)), _IDENTITIES)
        else:
            idle = node.target is nn.functional.dropout and node.kwargs.get("training") is False
        if idle:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _fold_graph(graph: fx.GraphModule) -> None:
    single = single_calls(graph)
    for node, norm in single.items():
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before not in single or len(before.users) > 1:
            continue
        layer = _fused(single[before], norm, shape_at(before))
        if layer is not None:
            graph.set_submodule(str(before.target), layer)
            single[before] = layer
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)


def _fold_sequences(model: nn.Module) -> nn.Module:
    """Fold where one follows the other in an `nn.Sequential`, and neither is used elsewhere."""
    owners = Counter(id(child) for module in model.modules() for child in module.children())
    for sequence, (name, layer), (norm_name, norm) in list(_neighbours(model)):
        if owners[id(layer)] == owners[id(norm)] == 1:
            fused = _fused(layer, norm, None)
            if fused is not None:
                setattr(sequence, name, fused)
                setattr(sequence, norm_name, nn.Identity())
    return model


def _neighbours(model: nn.Module) -> Iterator[tuple[nn.Module, Any, Any]]:
    for module in model.modules():
        if type(module).forward is nn.Sequential.forward:
            children = list(module.named_children())
            for first, second in itertools.pairwise(children):
                yield module, first, second


def _fused(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...] | None) -> nn.Module | None:
    """Return `layer` with `norm` in it, or None if that cannot be."""
    kind = _NORMS.get(type(norm))
    if kind is None or not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    if isinstance(layer, kind):
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return fuse_conv_bn_eval(layer, norm)
    # Of more than two dimensions, BatchNorm1d normalises the second, not the last.
    if isinstance(layer, nn.Linear) and kind is nn.Conv1d and shape is not None and len(shape) == 2:
        return fuse_linear_bn_eval(layer, norm)
    return None
