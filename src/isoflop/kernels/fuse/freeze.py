"""`isoflop.freeze`: a trained model in, one for inference out."""

import operator
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from isoflop.errors import NoEffectWarning
from isoflop.flops.fakes import output_tensors
from isoflop.kernels.autotune.candidates import sparse_candidates, sparse_layer
from isoflop.kernels.autotune.inputs import Reference, is_untouched
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.fuse.fold import folded_graph, folded_sequences, masked_copy
from isoflop.kernels.fuse.graph import (
    input_of,
    module_of,
    read_modules,
    replace_node,
    shape_at,
    single_calls,
)
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

_MODULES: dict[Any, str] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}

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

    The result has computed what the model does, on the example inputs and on other values of their
    shapes; where folding and fusing change more than rounding, less is folded and fused.

    Args:
        model: Any module; it is not changed.
        example_inputs: What it takes; see `isoflop.profile`. The result takes the same arguments,
            and other batch sizes as far as the model does.

    Returns:
        A model in evaluation mode whose outputs are those of `model.eval()`, up to rounding.

    Raises:
        InputError: The model cannot be run on the example inputs.
        IsoflopError: A copy of the model would go on using the model's own weights.

    Warns:
        NoEffectWarning: Equal inputs give unequal outputs, so that no change could be checked: the
            result is a copy with dense layers.
    """
    reference = Reference(model, example_inputs)
    return _first_that_agrees(reference, _frozen(reference))


def frozen_dense(model: nn.Module, *, example_inputs: ExampleInputs) -> nn.Module:
    """Return a copy for inference whose layers are all dense, zeros in their places.

    Args:
        model: Any module; it is not changed.
        example_inputs: What it takes.

    Raises:
        InputError: The model cannot be run on the example inputs, or returns nothing.
        IsoflopError: A copy of the model would go on using the model's own weights.
    """
    reference = Reference(model, example_inputs)
    if reference.output is None:
        output_tensors(model, None)
    return _first_that_agrees(reference, map(without_masks, _foldings(reference)))


def without_masks(model: nn.Module) -> nn.Module:
    """Forget all masks; the weights stay as they are."""
    for _, module, parameter, _ in list(named_masks(model)):
        remove_mask(module, parameter)
    return model


def _first_that_agrees(reference: Reference, attempts: Iterator[nn.Module]) -> nn.Module:
    """Return the first model that computes what it should, else a copy of the dense one."""
    for model in attempts:
        if reference.agrees(model):
            return model.eval()  # containers that a graph makes anew too
    unchanged = without_masks(masked_copy(reference))
    if not reference.agrees(unchanged):
        warnings.warn(
            "Nothing was folded, fused or made sparse: with equal inputs and random numbers, the outputs "
            "of the model differ, or hold no tensor, so that no change could be checked. Freeze the part "
            "of it that computes the same every time, and returns tensors.",
            NoEffectWarning,
            stacklevel=3,
        )
    return unchanged.eval()


def _foldings(reference: Reference) -> Iterator[nn.Module]:
    """Iterate over masked copies in which ever less is folded."""
    graph = folded_graph(reference)
    if graph is not None:
        yield graph
    yield folded_sequences(reference)


def _frozen(reference: Reference) -> Iterator[nn.Module]:
    """Iterate over copies for inference to which ever less was done."""
    plain = masked_copy(reference)
    sparse = sparse_candidates(plain, reference.inputs).layers.keys()
    for fuse in (True, False):
        # Fusing moves a layer to where its residual is added; what it reads may have changed by then.
        graph = folded_graph(reference)
        if graph is not None:
            yield _finished(_sparse(graph, sparse), fuse=fuse)
    yield _sparse(folded_sequences(reference), sparse)
    yield _sparse(plain, sparse)


def _sparse(model: nn.Module, paths: Collection[str]) -> nn.Module:
    """Put sparse layers in the place of masked ones, and forget the other masks."""
    new: dict[nn.Module, nn.Module] = {}
    read = read_modules(model) if isinstance(model, fx.GraphModule) else ()
    for path, module in model.named_modules():
        mask = get_mask(module)
        if path in paths and mask is not None and module not in read:
            new[module] = sparse_layer(module, mask).requires_grad_(False)
    model = replace_modules(model, new)
    without_masks(model)
    forbid_fast_path(model, (SparseLayer,))
    return model


def _finished(graph: nn.Module, *, fuse: bool) -> nn.Module:
    """Make operations part of sparse layers, if that is wanted, and pools such as have a layout."""
    assert isinstance(graph, fx.GraphModule)
    if fuse:
        _fuse_residuals(graph)
        fuse_activations(graph)
    _make_modules_of_pools(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


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
                replace_node(graph, node, fused)
                graph.graph.erase_node(term)
                del single[term]
                break


def fuse_activations(graph: fx.GraphModule) -> None:
    """Make activations part of the sparse layers before them; `graph.recompile()` takes effect."""
    single = single_calls(graph)
    for node in list(graph.graph.nodes):
        name = _activation(graph, node)
        before = input_of(node)
        if name is None or before is None or len(before.users) > 1:
            continue
        layer = single.get(before)
        if isinstance(layer, SparseLayer) and layer.activation == "none":
            layer.activation = name
            replace_node(graph, node, before)


def _activation(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """Return which of the kernels' activations `node` applies, if any."""
    module = module_of(graph, node)
    if module is not None:
        exact = not isinstance(module, nn.GELU) or module.approximate == "none"
        return _MODULES.get(type(module)) if exact and is_untouched(module) else None
    if node.op not in _OPERATIONS or len(node.args) != 1 or not set(node.kwargs) <= {"inplace"}:
        return None
    return _ACTIVATIONS.get(node.target)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _make_modules_of_pools(graph: fx.GraphModule) -> None:
    """Make pooling modules of pooling functions, for `layout_modules` to find."""
    for number, node in enumerate(list(graph.graph.nodes)):
        kind = _POOLS.get(node.target)  # pyright: ignore[reportArgumentType]
        if kind is None or len(node.args) != 1 or len(node.all_input_nodes) != 1:
            continue
        name = f"pool_{number}"
        graph.add_submodule(name, kind(**node.kwargs).eval())
        with graph.graph.inserting_before(node):
            pool = graph.graph.call_module(name, node.args)
        pool.meta = dict(node.meta)
        replace_node(graph, node, pool)
