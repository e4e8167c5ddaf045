"""One forward pass of a model in which every possible width is a symbol."""

import contextlib
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from isoflop.copies import copy_with_tensors
from isoflop.errors import InputError
from isoflop.fakes import (
    RunningModules,
    fake_inputs,
    fake_like,
    fake_mode,
    follow_rules,
    output_tensors,
    run_on_fakes,
    unfused,
)
from isoflop.rules import WideningRule, rule_of
from isoflop.surgery import ExampleInputs, configs, normalize_inputs
from isoflop.widths.expressions import Expression
from isoflop.widths.nodes import Space, expression_of
from isoflop.widths.stand_ins import STAND_INS, recurrent

# Names of integers that are widths.
_WIDTH_NAME = re.compile(
    r"(dim|dims|features|channels|chs|planes|hidden|hidden_size|(head|normalized)_(size|shape)|embed|embd|width|d_model|units)$"
    r"|^(dim|d)_|channels|chs"
)
# Names of integers that say how many parts a width has, or how large a picture or a text is.
_COUNT_NAME = re.compile(
    r"(heads?|groups?|layers?|blocks?|depth|experts?|stages?|chunks?|branches|scales?|"
    r"window\w*|patch\w*|partition\w*|kernel\w*|stride\w*|padding|pad|dilation\w*|grid\w*|img\w*|image\w*|area|"
    r"resolution|vocab\w*|class\w*|labels?|top_?k|length|len|seq\w*|positions?|\w*tokens?|quer(y|ies)|"
    r"buckets?|distance|ratio|idx|index|id|reduction|radix|order|ndim|cardinality|axis)_?\d*$"
    r"|^(num|n|nb|max|min|block|chunk)_"
)

_SMALLEST_WIDTH = 8
"""Smaller integers that equal a size of a parameter are taken for widths only by name."""


class SymbolicTrace:
    """Runs a model on tensors of symbolic sizes and collects the equations between them.

    Attributes:
        space: The equations.
        shapes: Symbolic shape of every parameter and buffer by `(module path, attribute)`.
        attributes: Symbolic value of every attribute that restates a width, likewise.
        parameters: The keys of `shapes` that are parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._running: list[str] = [""]
        self.operation = ""
        self.space = Space(self._location)
        self.shapes: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.attributes: dict[tuple[str, str], Any] = {}
        self.parameters: set[tuple[str, str]] = set()

    def _location(self) -> str:
        path = self._running[-1] or type(self.model).__name__
        return f"{path} ({self.operation})" if self.operation else path

    def run(self, example_inputs: ExampleInputs) -> None:
        """Run the forward pass and pin what the model returns to its sizes."""
        args, kwargs = normalize_inputs(self.model, example_inputs)
        with contextlib.ExitStack() as stack:
            for context in (unfused(), _square_roots_by_numpy()):
                stack.enter_context(context)
            # Symbolic shapes hardly ever repeat, so looking them up costs more than it saves.
            mode = stack.enter_context(fake_mode(cache=False))
            stack.enter_context(_Functions(self))
            fake = copy_with_tensors(self.model, self._make, share_others=True)
            fake.train().eval()  # see `isoflop.flops.trace`
            follow_rules(fake)
            for path, config in configs(fake).items():
                self._set_config(path, config)
            for path, module in fake.named_modules():
                self._set_attributes(path, module)
                if isinstance(module, nn.RNNBase):
                    module.forward = functools.partial(recurrent, module)
            self._running = RunningModules(fake)
            args, kwargs = fake_inputs(mode, (args, kwargs))
            self._pin(run_on_fakes(fake, args, kwargs, self._running))
            if self._idle():
                # Some parts run in training only, such as auxiliary heads.
                with contextlib.suppress(InputError):
                    self._pin(run_on_fakes(fake.train(), args, kwargs, self._running))
                for size in self._idle():
                    pinned = Expression.constant(size.value)
                    self.space.equations.equate(size, pinned, "a parameter that no pass uses")

    def _pin(self, output: Any) -> None:
        """Keep the sizes of what the model returns."""
        for tensor in output_tensors(self.model, output):
            for size in tensor.shape:
                expression = expression_of(size)
                pinned = Expression.constant(expression.value)
                self.space.equations.equate(expression, pinned, "the model's output")

    def _idle(self) -> list[Expression]:
        """Return the sizes of parameters no size of which is part of an equation."""
        used = {
            atom
            for equation in self.space.equations.recorded.values()
            for side in (equation.left, equation.right)
            for atom in side.symbols()
        }
        idle = []
        for key in self.parameters:
            sizes = [expression_of(size) for size in self.shapes[key]]
            if not any(size.symbols() & used for size in sizes):
                idle += [size for size in sizes if not size.is_constant]
        return idle

    def _make(self, module: nn.Module, path: str, name: str, tensor: Tensor) -> Tensor:
        shape = self._symbolic_shape(module, name, tensor)
        if shape is None:
            return fake_like(tensor)
        self.shapes[path, name] = shape
        if isinstance(module._parameters.get(name), nn.Parameter):
            self.parameters.add((path, name))
        return torch.empty(shape, dtype=tensor.dtype, device="cpu")

    def _symbol(self, size: int, name: str) -> Any:
        return self.space.symbol(size, name) if size > 1 else size

    def _symbolic_shape(
        self, module: nn.Module, name: str, tensor: Tensor
    ) -> tuple[Any, ...] | None:
        if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
            return None  # tables of indices and counters
        if name in rule_of(module).constants:
            return None
        sizes: list[Any] = list(tensor.shape)
        if isinstance(module, _ConvNd) and name == "weight":
            sizes[:2] = self._conv_channels(module)
            return tuple(sizes)
        embedding = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and name == "weight"
        fixed = {0} if embedding else set()
        plain = type(module).__module__.startswith("torch.nn.")
        table = len(sizes) > 1 and not isinstance(tensor, nn.Parameter)
        if table or (not plain and isinstance(tensor, nn.Parameter)):
            # Coordinates, numbers of heads and the like.
            fixed |= {dim for dim, size in enumerate(sizes) if size < _SMALLEST_WIDTH}
        if len(sizes) == 3 and not plain and sizes[0] in _counts(module):
            fixed.add(0)  # the matrices of all experts, or of all heads
        return tuple(
            size if dim in fixed else self._symbol(size, name) for dim, size in enumerate(sizes)
        )

    def _conv_channels(self, conv: _ConvNd) -> tuple[Any, Any]:
        """Return symbolic sizes of the first two dimensions of a convolution's weight."""
        sizes = tuple(conv.weight.shape[:2])
        if conv.groups > 1 and conv.groups == conv.in_channels and not conv.transposed:
            # Depthwise: the number of groups is the width.
            groups = self._symbol(conv.groups, "groups")
            return groups * (conv.out_channels // conv.groups), sizes[1]
        return self._symbol(sizes[0], "channels"), self._symbol(sizes[1], "channels")

    def _set_attributes(self, path: str, module: nn.Module) -> None:
        """Make the attributes that restate a width symbolic too, so that they follow it."""
        new: dict[str, Any] = {}
        weight = module._parameters.get("weight")
        if isinstance(module, nn.Linear) and weight is not None:
            new = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        elif isinstance(module, _ConvNd) and weight is not None:
            groups: Any = module.groups
            if groups > 1 and groups == module.in_channels and not module.transposed:
                multiplier = module.out_channels // module.groups
                groups = weight.shape[0] // multiplier if multiplier > 1 else weight.shape[0]
                new["groups"] = groups
            ends = (weight.shape[1] * groups, weight.shape[0])
            if module.transposed:
                ends = (weight.shape[0], weight.shape[1] * groups)
            new |= {"in_channels": ends[0], "out_channels": ends[1]}
        elif isinstance(module, _NormBase):
            statistic = weight if weight is not None else module._buffers.get("running_mean")
            if statistic is not None:
                new = {"num_features": statistic.shape[0]}
        elif isinstance(module, nn.GroupNorm) and weight is not None:
            new = {"num_channels": weight.shape[0]}
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            shape = (
                tuple(weight.shape)
                if weight is not None
                else tuple(self._symbol(s, "norm") for s in module.normalized_shape)
            )
            new = {"normalized_shape": shape}
        elif isinstance(module, nn.Embedding) and weight is not None:
            new = {"embedding_dim": weight.shape[1]}
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            new = _recurrent_sizes(module)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            width: Any = module.in_proj_weight.shape[1]
            new = dict.fromkeys(("embed_dim", "kdim", "vdim"), width)
            new["head_dim"] = width // module.num_heads
        elif not type(module).__module__.startswith("torch.nn."):
            dense = self.model.get_submodule(path)
            sizes = {
                size for p in dense.parameters() for size in p.shape if size >= _SMALLEST_WIDTH
            }
            rule = rule_of(module)
            new = {
                name: self._attribute(name, value, sizes, rule)
                for name, value in vars(module).items()
                if name not in rule.constants
            }
            new = {name: value for name, value in new.items() if value is not vars(module)[name]}
        for name, value in new.items():
            self.attributes[path, name] = value
            module.__dict__[name] = value

    def _set_config(self, path: str, config: Any) -> None:
        """Make widths symbolic in a configuration, which a forward pass may read."""
        sizes = {
            size
            for parameter in self.model.parameters()
            for size in parameter.shape
            if size >= _SMALLEST_WIDTH
        }
        for name, value in list(vars(config).items()):
            if type(value) is int:
                new = self._attribute(name, value, sizes, WideningRule())
                if new is not value:
                    self.attributes[path, name] = config.__dict__[name] = new

    def _attribute(self, name: str, value: Any, sizes: set[int], rule: WideningRule) -> Any:
        """Return a symbol in place of an integer that may be a width, also within a tuple.

        An attribute changes only if the equations tie it to a width of a parameter, so one that is
        taken for a width by chance does no harm; but of two factors of a width only one may be free.
        """
        if type(value) is int:
            told = name in rule.widths or _WIDTH_NAME.search(name)
            width = told or (value in sizes and not _COUNT_NAME.search(name))
            if value > 1 and width:
                return self.space.symbol(value, name)
        elif type(value) in (tuple, list, torch.Size) and any(type(item) is int for item in value):
            items = [self._attribute(name, item, sizes, rule) for item in value]
            if any(new is not old for new, old in zip(items, value, strict=True)):
                # Where one part is a width, the others are too: (hidden, rest, channels).
                items = [
                    self.space.symbol(item, name)
                    if type(item) is int and item >= _SMALLEST_WIDTH
                    else item
                    for item in items
                ]
            if any(new is not old for new, old in zip(items, value, strict=True)):
                return items if type(value) is list else tuple(items)
        return value


def _counts(module: nn.Module) -> set[int]:
    """Return the numbers of parts that a module restates."""
    return {v for name, v in vars(module).items() if type(v) is int and _COUNT_NAME.search(name)}


def _recurrent_sizes(module: nn.Module) -> dict[str, Any]:
    """Return the sizes that a recurrent layer or cell restates."""
    parameters = module._parameters
    layer = "_l0" if isinstance(module, nn.RNNBase) else ""
    inputs, states = parameters[f"weight_ih{layer}"], parameters[f"weight_hh{layer}"]
    projection = parameters.get("weight_hr_l0")
    new: dict[str, Any] = {"input_size": inputs.shape[1], "hidden_size": states.shape[1]}  # type: ignore[union-attr]
    if projection is not None:
        new |= {"proj_size": projection.shape[0], "hidden_size": projection.shape[1]}
    return new


@contextlib.contextmanager
def _square_roots_by_numpy() -> Iterator[None]:
    """Let `numpy.sqrt`, which asks an object for a method of that name, take a symbolic size."""
    torch.SymInt.sqrt = lambda size: math.sqrt(int(size))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del torch.SymInt.sqrt  # type: ignore[attr-defined]


class _Functions(TorchFunctionMode):
    """Puts the stand-ins in the place of their functions and notes which function runs."""

    def __init__(self, trace: SymbolicTrace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outer, self.trace.operation = self.trace.operation, getattr(func, "__name__", str(func))
        try:
            run: Any = STAND_INS.get(func, func)
            return run(*args, **(kwargs or {}))
        finally:
            self.trace.operation = outer
