"""Graphs of models, by `torch.fx`, for inference."""

import contextlib
import inspect
import io
import warnings
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.utils._pytree import tree_leaves

from isoflop.kernels.autotune.inputs import Inputs, is_untouched
from isoflop.randomness import kept_random_state
from isoflop.surgery import is_fan_in_fan_out

_LEAVES = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)

_PARAMETERS: dict[Any, tuple[str, ...]] = {
    F.dropout: ("input", "p", "training"),
    F.relu: ("input", "inplace"),
    F.silu: ("input", "inplace"),
    F.gelu: ("input",),
    torch.relu: ("input",),
    torch.relu_: ("input",),
    torch.add: ("input", "other"),
    F.max_pool2d: (
        *("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
        "return_indices",
    ),
    F.avg_pool2d: (
        *("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
        "divisor_override",
    ),
    F.adaptive_avg_pool2d: ("input", "output_size"),
}
"""Names of the parameters of functions that are looked for in graphs."""


def traced(model: nn.Module, inputs: Inputs) -> fx.GraphModule | None:
    """Return the graph of a model for inputs like these, or None if it has none.

    Nodes take the tensor that they work on as their first positional argument, and what else they are
    given by name as far as the names are known. Every node has a shape, see `shape_at`.

    Args:
        model: A copy to work on, in evaluation mode: tracing may leave marks in it.
        inputs: What it takes.
    """
    args, kwargs = inputs
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    try:
        signature = inspect.signature(model.forward)
        given = signature.bind(*args, **kwargs).arguments
        tracer = _Tracer()
        # A graph is no layer, and takes no arguments but tensors.
        tensors = all(isinstance(value, Tensor) for value in given.values())
        if tracer.is_leaf_module(model, "") or not tensors:
            return None
        left_out = {
            name: parameter.default
            for name, parameter in signature.parameters.items()
            if name not in given and parameter.default is not parameter.empty
        }
        with warnings.catch_warnings(), kept_random_state(model):
            warnings.simplefilter("ignore")
            nodes = tracer.trace(model, concrete_args=left_out)
        if any(_has_marks(module, state) for module, state in before):
            return None  # the forward pass keeps things in modules, which a graph would not
        graph = fx.GraphModule(model, nodes, type(model).__name__)
        _name_arguments(graph)
        shapes_of(graph, inputs)
    except Exception:  # whatever code that is not made to be traced may raise
        return None
    return graph


def shapes_of(graph: fx.GraphModule, inputs: Inputs) -> None:
    """Note the shape of every tensor of a graph at its node."""
    args, kwargs = inputs
    bound = inspect.signature(graph.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    # It prints the errors that it raises.
    silent = contextlib.redirect_stderr(io.StringIO())
    with torch.no_grad(), kept_random_state(graph), silent:
        ShapeProp(graph).propagate(*bound.args)


def shape_at(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of the tensor that `node` makes, or None if it makes no single one."""
    made = node.meta.get("tensor_meta")
    return tuple(made.shape) if isinstance(made, TensorMetadata) else None


def input_of(node: fx.Node) -> fx.Node | None:
    """Return the node whose result `node` works on, or None."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) else None


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that `node` calls, or None."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def single_calls(graph: fx.GraphModule) -> dict[fx.Node, nn.Module]:
    """Return the nodes that call modules which nothing else in the graph calls or reads."""
    nodes = graph.graph.nodes
    calls = {n: module for n in nodes if (module := module_of(graph, n)) is not None}
    counts = Counter(id(module) for module in calls.values())
    inner = {id(m) for module in set(calls.values()) for m in module.modules() if m is not module}
    taken = inner | {id(module) for module in read_modules(graph)}
    return {
        node: module
        for node, module in calls.items()
        if counts[id(module)] == 1 and id(module) not in taken
    }


def read_modules(graph: fx.GraphModule) -> set[nn.Module]:
    """Return the modules of which the graph reads a parameter or buffer by itself."""
    nodes = graph.graph.nodes
    paths = {str(n.target).rpartition(".")[0] for n in nodes if n.op == "get_attr"}
    return {graph.get_submodule(path) for path in paths}


def replace_node(graph: fx.GraphModule, old: fx.Node, new: fx.Node) -> None:
    """Let `new` take the place of `old`, which is erased."""
    old.replace_all_uses_with(new)
    graph.graph.erase_node(old)


class _Tracer(fx.Tracer):
    """Keeps layers and normalisations whole, those of other libraries too, and what has hooks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, _LEAVES) or is_fan_in_fan_out(m) or not is_untouched(m)
        return leaf or super().is_leaf_module(m, module_qualified_name)


def _has_marks(module: nn.Module, before: dict[str, Any]) -> bool:
    """Return whether attributes of a module are others than before."""
    now = {k: v for k, v in module.__dict__.items() if not k.startswith("_tensor_constant")}
    return (
        now.keys() != before.keys()
        or any(value is not before[name] for name, value in now.items())
        or any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves(list(now.values())))
    )


def _name_arguments(graph: fx.GraphModule) -> None:
    """Pass what a node works on by position, and the rest by name where names are known."""
    for node in graph.graph.nodes:
        args, kwargs = list(node.args), dict(node.kwargs)
        module = module_of(graph, node)
        if module is not None and is_untouched(module):
            parameters = inspect.signature(module.forward).parameters.values()
            first = next((p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD), None)
            if not args and first in kwargs:
                node.args, node.kwargs = (kwargs.pop(first),), kwargs
        elif node.op == "call_function" and node.target in _PARAMETERS:
            names = _PARAMETERS[node.target]
            if len(args) <= len(names):
                kwargs = dict(zip(names, args, strict=False)) | kwargs
                args = [kwargs.pop(name) for name in ("input", "other") if name in kwargs]
                node.args, node.kwargs = tuple(args), kwargs
