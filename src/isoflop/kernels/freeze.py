"""`isoflop.freeze`: a trained model in, one for inference out."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from isoflop.kernels.candidates import masked_layers, sparse_layer
from isoflop.kernels.fold import folded, shape_at, shapes_of, single_calls
from isoflop.kernels.inputs import output_tensors, outputs_agree, real_inputs
from isoflop.kernels.layers import SparseLayer
from isoflop.masks import get_mask, named_masks, remove_mask
from isoflop.surgery import ExampleInputs, replace_modules
from isoflop.transforms.attention import forbid_fast_path

_OPERATIONS = ("call_function", "call_method")

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")

_ACTIVATIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.gelu: "gelu",
    F.silu: "silu",
}

_POOLS = {
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}


def freeze(model: nn.Module, *, example_inputs: ExampleInputs) -> nn.Module:
    """Return a copy of a model for inference.

    BatchNorm becomes part of the layer before it. Masked linear layers and 2-dimensional
    convolutions become `SparseLinear` and `SparseConv2d`; other masks are forgotten, their zeros
    stay. Where the model can be traced by `torch.fx`, ReLU, GELU, SiLU and the addition of a
    residual become part of the sparse layer before them, and the result is a
    `torch.fx.GraphModule`. Otherwise the result keeps the model's classes, nothing is fused, and
    BatchNorm is folded inside of `nn.Sequential` only.

    Args:
        model: Any module; it is not changed.
        example_inputs: What it takes; see `isoflop.profile`. The result takes the same arguments,
            and other batch sizes as far as the model does.

    Returns:
        A model in evaluation mode whose outputs are those of `model.eval()`, up to rounding.

    Raises:
        InputError: The model cannot be run on the example inputs.
    """
    args, kwargs = real_inputs(model, example_inputs)
    fused = _frozen(model, example_inputs, fuse=True)
    # Fusing moves a layer to where its residual is added; what it reads may have changed by then.
    if outputs_agree(output_tensors(fused, args, kwargs), output_tensors(model, args, kwargs)):
        return fused
    return _frozen(model, example_inputs, fuse=False)


def frozen_dense(model: nn.Module, *, example_inputs: ExampleInputs) -> nn.Module:
    """Return a copy for inference whose layers are all dense, zeros in their places.

    Args:
        model: Any module; it is not changed.
        example_inputs: What it takes.

    Raises:
        InputError: They are no example inputs.
    """
    return without_masks(folded(model, example_inputs))


def without_masks(model: nn.Module) -> nn.Module:
    """Forget all masks; the weights stay as they are."""
    for _, module, parameter, _ in list(named_masks(model)):
        remove_mask(module, parameter)
    return model


def _frozen(model: nn.Module, example_inputs: ExampleInputs, *, fuse: bool) -> nn.Module:
    frozen = folded(model, example_inputs)
    new: dict[nn.Module, nn.Module] = {}
    for module in masked_layers(frozen, example_inputs).values():
        mask = get_mask(module)
        assert mask is not None
        sparse = sparse_layer(module, mask)
        if sparse is not None:
            new[module] = sparse.requires_grad_(False)
    frozen = replace_modules(frozen, new)
    without_masks(frozen)
    forbid_fast_path(frozen, (SparseLayer,))
    if isinstance(frozen, fx.GraphModule):
        args, kwargs = real_inputs(frozen, example_inputs)
        shapes_of(frozen, args, kwargs)
        if fuse:
            _fuse_residuals(frozen)
            fuse_activations(frozen)
        _make_modules_of_pools(frozen)
        frozen.delete_all_unused_submodules()
        frozen.graph.lint()
        frozen.recompile()
    return frozen


def _fuse_residuals(graph: fx.GraphModule) -> None:
    single = single_calls(graph)
    for node in list(graph.graph.nodes):
        if node.op not in _OPERATIONS or node.target not in _ADDITIONS:
            continue
        if node.kwargs or len(node.args) != 2:
            continue
        terms = [term for term in node.args if isinstance(term, fx.Node)]
        if len(set(terms)) != 2 or shape_at(terms[0]) != shape_at(terms[1]):
            continue
        for term, other in (terms, terms[::-1]):
            layer = single.get(term)
            if isinstance(layer, SparseLayer) and len(term.users) == 1 and len(term.args) == 1:
                with graph.graph.inserting_before(node):
                    fused = graph.graph.call_module(str(term.target), (term.args[0], other))
                fused.meta = dict(node.meta)
                _replace(graph, node, fused)
                graph.graph.erase_node(term)
                del single[term]
                break


def fuse_activations(graph: fx.GraphModule) -> None:
    """Make activations part of the sparse layers before them; `graph.recompile()` takes effect."""
    single = single_calls(graph)
    for node in list(graph.graph.nodes):
        name = _activation(graph, node)
        before = node.args[0] if name is not None and node.args else None
        if not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        layer = single.get(before)
        if isinstance(layer, SparseLayer) and layer.activation == "none":
            assert name is not None
            layer.activation = name
            _replace(graph, node, before)


def _activation(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """Return which of the kernels' activations `node` applies, if any."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, nn.GELU):
            return "gelu" if module.approximate == "none" else None
        kinds: dict[Any, str] = {nn.ReLU: "relu", nn.SiLU: "silu"}
        return kinds.get(type(module))
    if node.op not in _OPERATIONS or len(node.args) != 1 or not set(node.kwargs) <= {"inplace"}:
        return None
    return _ACTIVATIONS.get(node.target)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _make_modules_of_pools(graph: fx.GraphModule) -> None:
    """Make pooling modules of pooling functions, for `layout_modules` to find."""
    for number, node in enumerate(list(graph.graph.nodes)):
        kind = _POOLS.get(node.target)  # pyright: ignore[reportArgumentType]
        options = (*node.args[1:], *node.kwargs.values())
        if kind is None or any(isinstance(option, fx.Node) for option in options):
            continue
        name = f"pool_{number}"
        graph.add_submodule(name, kind(*node.args[1:], **node.kwargs).eval())
        with graph.graph.inserting_before(node):
            pool = graph.graph.call_module(name, (node.args[0],))
        pool.meta = dict(node.meta)
        _replace(graph, node, pool)


def _replace(graph: fx.GraphModule, old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new)
    graph.graph.erase_node(old)
