"""One forward pass of a model in which every possible width is a symbol."""

import contextlib
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from isoflop.errors import InputError, WideningError
from isoflop.flops.copies import copy_with_tensors
from isoflop.flops.fakes import (
    RunningModules,
    fake_inputs,
    fake_like,
    fake_mode,
    follow_rules,
    forgive_hooks,
    output_tensors,
    run_on_fakes,
    unfused,
)
from isoflop.flops.rules import WideningRule, rule_of
from isoflop.flops.trace import trace as plain_trace
from isoflop.flops.untouched import untouched
from isoflop.nests import map_tensors, tensors_in
from isoflop.surgery import ExampleInputs, configs, normalize_inputs
from isoflop.widths.expressions import Expression
from isoflop.widths.names import is_count_name, is_width_name
from isoflop.widths.nodes import Space, expression_of
from isoflop.widths.scales import Scale, Source, follow, hold, may_be_a_scale, number_in, rounding
from isoflop.widths.stand_ins import recurrent, stand_in_of

# Names by which layers of PyTorch say along which dimension they work.
_AXIS_NAME = re.compile(r"^(start_|end_)?dim$")

_LARGEST_CONTAINER = 64
"""Containers with more items are not looked into for numbers."""

_SMALLEST_WIDTH = 8
"""Smaller integers that equal a size of a parameter are taken for widths only by name."""


class SymbolicTrace:
    """Runs a model on tensors of symbolic sizes and collects the equations between them.

    Attributes:
        space: The equations.
        shapes: Symbolic shape of every parameter and buffer by `(module path, attribute)`.
        attributes: Symbolic value of every attribute that restates a width, likewise.
        parameters: The keys of `shapes` that are parameters and trained. The sizes of frozen ones follow
            theirs, as those of buffers do, and stay where nothing ties them to one.
        numbers: What is known of the use of every tensor with one element, likewise.
        unnamed: The same of the floats that come from no attribute, in the order of their use.
        computed: The same of the floats that the forward pass computes from sizes.
        attended: The number of channels of a head in the fused attention that ran in a module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.space = Space(type(model).__name__)
        self.shapes: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.attributes: dict[tuple[str, str], Any] = {}
        self.parameters: set[tuple[str, str]] = set()
        self.numbers: dict[tuple[str, str], Source] = {}
        self.unnamed: list[Source] = []
        self.computed: list[Source] = []
        self.attended: dict[str, dict[Expression, None]] = {}

    def run(self, example_inputs: ExampleInputs) -> None:
        """Run the forward pass and pin what the model returns to its sizes.

        Raises:
            InputError: The model cannot be run on the example inputs.
            WideningError: It can, but not on symbolic sizes.
        """
        try:
            self._run(example_inputs)
        except InputError as error:
            plain_trace(self.model, example_inputs)
            raise WideningError(
                f"{type(self.model).__name__} runs on the example inputs, but not where its widths are "
                f"symbols: {error.reason or error}. Let the code there use sizes as they are, without "
                "turning them into text or asking for their type, or give the module a forward pass for "
                "traces with `isoflop.register_widening_rule`. Transforms that keep widths, such as "
                "SparseParallel, need none."
            ) from error

    def _run(self, example_inputs: ExampleInputs) -> None:
        args, kwargs = normalize_inputs(self.model, example_inputs)
        with contextlib.ExitStack() as stack:
            for context in (untouched(self.model), unfused(), _more_like_integers()):
                stack.enter_context(context)
            # Symbolic shapes hardly ever repeat, so looking them up costs more than it saves.
            mode = stack.enter_context(fake_mode(cache=False))
            stack.enter_context(_Functions(self))
            fake = copy_with_tensors(self.model, self._make, share_others=True)
            fake.train().eval()  # see `isoflop.flops.trace.trace`
            follow_rules(fake)
            forgive_hooks(fake)
            given = {id(config) for config in configs(self.model).values()}
            for path, config in configs(fake).items():
                if id(config) not in given:  # one that has no copy is the user's
                    self._set_config(path, config)
            for path, module in fake.named_modules():
                self._set_attributes(path, module)
                if isinstance(module, nn.RNNBase):
                    module.forward = functools.partial(recurrent, module)
            running = self.space.running = RunningModules(fake)
            args, kwargs = fake_inputs(mode, (args, kwargs))
            self._pin(run_on_fakes(fake, args, kwargs, running))
            if self._idle():
                # Some parts run in training only, such as auxiliary heads.
                with contextlib.suppress(InputError):
                    self._pin(run_on_fakes(fake.train(), args, kwargs, running))
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
        number = number_in(tensor)
        if number is not None and may_be_a_scale(number):
            source = Source(name, number, _full(path, name), tolerance=rounding(tensor.dtype))
            self.numbers[path, name] = source
        if tensor.numel() == 1:
            fake = fake_like(tensor)
        else:
            self.shapes[path, name] = shape
            # What is frozen gets another size only where what is trained does.
            if module._parameters.get(name) is not None and tensor.requires_grad:
                self.parameters.add((path, name))
            fake = torch.empty(shape, dtype=tensor.dtype, device="cpu")
        if (path, name) in self.numbers:
            hold(fake, self.numbers[path, name])
        return fake

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
        trained = isinstance(tensor, nn.Parameter) and tensor.requires_grad
        table = len(sizes) > 1 and not trained
        if (table and not tensor.is_complex()) or (not plain and trained):
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
        rule = rule_of(module)
        own = not type(module).__module__.startswith("torch.nn.")
        sizes = _sizes(self.model.get_submodule(path)) if own else set()
        old = {**(_class_numbers(type(module)) if own else {}), **vars(module)}
        new = {
            name: self._numbers(self._attribute(name, value, sizes, rule), name, path)
            for name, value in old.items()
            if _is_plain(value) and (own or not _AXIS_NAME.search(name))
        }
        new |= self._layer_attributes(module)
        for name, value in new.items():
            if name not in rule.constants and value is not old.get(name):
                self.attributes[path, name] = module.__dict__[name] = value

    def _layer_attributes(self, module: nn.Module) -> dict[str, Any]:
        """Return the attributes of a layer of PyTorch, in terms of the shapes of its parameters."""
        weight = module._parameters.get("weight")
        if isinstance(module, _ConvNd) and weight is not None:
            groups: Any = module.groups
            new = {}
            if groups > 1 and groups == module.in_channels and not module.transposed:
                multiplier = module.out_channels // module.groups
                groups = weight.shape[0] // multiplier if multiplier > 1 else weight.shape[0]
                new["groups"] = groups
            ends = (weight.shape[1] * groups, weight.shape[0])
            if module.transposed:
                ends = (weight.shape[0], weight.shape[1] * groups)
            return new | {"in_channels": ends[0], "out_channels": ends[1]}
        if isinstance(module, nn.Linear) and weight is not None:
            return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        if isinstance(module, nn.Bilinear):
            names = ("out_features", "in1_features", "in2_features")
            return dict(zip(names, module.weight.shape, strict=True))
        if isinstance(module, _NormBase):
            statistic = weight if weight is not None else module._buffers.get("running_mean")
            return {} if statistic is None else {"num_features": statistic.shape[0]}
        if isinstance(module, nn.GroupNorm) and weight is not None:
            return {"num_channels": weight.shape[0]}
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            if weight is not None:
                return {"normalized_shape": tuple(weight.shape)}
            return {
                "normalized_shape": tuple(self._symbol(s, "norm") for s in module.normalized_shape)
            }
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and weight is not None:
            return {"embedding_dim": weight.shape[1]}
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            return _recurrent_sizes(module)
        if isinstance(module, nn.MultiheadAttention):
            return _attention_sizes(module)
        return {}

    def _set_config(self, path: str, config: Any) -> None:
        """Make widths symbolic in a configuration, which a forward pass may read."""
        sizes = _sizes(self.model)
        for name, value in list(vars(config).items()):
            if type(value) is int:
                new = self._attribute(name, value, sizes, WideningRule())
            else:
                new = self._numbers(value, name, path) if _is_plain(value) else value
            if new is not value:
                self.attributes[path, name] = config.__dict__[name] = new

    def _attribute(self, name: str, value: Any, sizes: set[int], rule: WideningRule) -> Any:
        """Return a symbol in place of an integer that may be a width, also within a tuple.

        An attribute changes only if the equations tie it to a width of a parameter, so one that is
        taken for a width by chance does no harm; but of two factors of a width only one may be free.
        """
        if type(value) is int:
            told = name in rule.widths or is_width_name(name)
            width = told or (value in sizes and not is_count_name(name))
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

    def _numbers(self, value: Any, name: str, path: str) -> Any:
        """Return what follows the use of a float in its place, also within a container."""
        if isinstance(value, (float, np.floating)):
            number = float(value)
            if may_be_a_scale(number):
                return Scale(number, Source(name, number, _full(path, name)))
        elif type(value) in (tuple, list, dict) and len(value) <= _LARGEST_CONTAINER:
            items = list(value.values() if isinstance(value, dict) else value)
            new = [self._numbers(item, name, path) for item in items]
            if any(one is not other for one, other in zip(new, items, strict=True)):
                return (
                    dict(zip(value, new, strict=True)) if type(value) is dict else type(value)(new)
                )
        return value

    def use_of(self, source: Source, path: str, name: str) -> Source:
        """Return what is known of the use of a number of a module, or else what its use would be.

        Modules that can fuse their attention, which scales by itself, keep the scale for when they do
        not; and those that share their weights with others, such as embeddings, need not run.
        """
        if source.products or source.factors or not source.is_scale:
            return source
        source.products |= self.attended.get(path, {})
        if not source.products:
            for twin in self._twins(path):
                value = self.attributes.get((twin, name))
                if isinstance(value, Scale):
                    source.products |= value.sources[0].products
                    source.factors |= value.sources[0].factors
        return source

    def _twins(self, path: str) -> list[str]:
        """Return the paths of modules of the same class that share parameters with a module."""
        modules = dict(self.model.named_modules())
        module = modules.get(path)
        own = {id(p) for p in module.parameters()} if module is not None else set()
        return [
            twin
            for twin, other in modules.items()
            if type(other) is type(module)
            and own & {id(p) for p in other.parameters(recurse=False)}
        ]

    def sizes(self, path: str) -> list[Expression]:
        """Return the sizes of a module and of what it consists of, or those of what it is part of."""
        while True:
            prefix = f"{path}." if path else ""
            found = {
                expression_of(size): None
                for held in (self.shapes, self.attributes)
                for (owner, _), value in held.items()
                if owner == path or owner.startswith(prefix)
                for size in (value if isinstance(value, tuple) else (value,))
                if isinstance(size, torch.SymInt)
            }
            if found or not path:
                return list(found)
            path = path.rpartition(".")[0]


def _is_plain(value: Any) -> bool:
    """Tell whether a value consists of numbers and strings, so that a copy of it may be changed."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(_is_plain, value.values()))
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (int, float, str, np.floating))


def _class_numbers(kind: type) -> dict[str, Any]:
    """Return the numbers that a class gives to all of its modules."""
    return {
        name: value
        for cls in reversed(kind.__mro__)
        if not cls.__module__.startswith("torch.nn.")
        for name, value in vars(cls).items()
        if type(value) in (int, float, tuple, list)
        and not name.startswith("_")
        and _is_plain(value)
    }


def _full(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _counts(module: nn.Module) -> set[int]:
    """Return the numbers of parts that a module restates."""
    return {v for name, v in vars(module).items() if type(v) is int and is_count_name(name)}


def _sizes(module: nn.Module) -> set[int]:
    """Return the sizes of all parameters of a module that may be widths."""
    sizes = (size for parameter in module.parameters() for size in parameter.shape)
    return {size for size in sizes if size >= _SMALLEST_WIDTH}


def _attention_sizes(module: nn.MultiheadAttention) -> dict[str, Any]:
    """Return the sizes that multi-head attention restates."""
    parameters: Any = module._parameters
    joint = parameters["in_proj_weight"]
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    query, key, value = (joint,) * 3 if joint is not None else (parameters[name] for name in names)
    width = query.shape[1]
    return {
        "embed_dim": width,
        "kdim": key.shape[1],
        "vdim": value.shape[1],
        "head_dim": width // module.num_heads,
    }


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
def _more_like_integers() -> Iterator[None]:
    """Let symbolic sizes do more of what integers do.

    `numpy.sqrt` asks an object for a method of that name, tables that a forward pass keeps by shape
    need a hash, and texts a format.
    """
    methods = {
        "sqrt": lambda size: math.sqrt(int(size)),
        "__hash__": lambda size: hash(int(size)),
        "__format__": lambda size, spec: format(int(size), spec),
    }
    own = {name: vars(torch.SymInt)[name] for name in methods if name in vars(torch.SymInt)}
    for name, method in methods.items():
        setattr(torch.SymInt, name, method)
    try:
        yield
    finally:
        for name in methods:
            delattr(torch.SymInt, name)
        for name, method in own.items():
            setattr(torch.SymInt, name, method)


def _linked(result: Any, operands: list[Any]) -> Any:
    """Let gradients reach the operands of a stand-in, for a forward pass that computes some."""
    trained = [t for t in tensors_in(operands) if t.requires_grad]
    if not trained:
        return result
    nothing = sum(tensor.sum() for tensor in trained) * 0
    return map_tensors(result, lambda t: t + nothing if t.is_floating_point() else t)


class _Functions(TorchFunctionMode):
    """Puts the stand-ins in the place of their functions and notes which function runs."""

    def __init__(self, trace: SymbolicTrace) -> None:
        super().__init__()
        self.trace = trace
        self.space = trace.space

    def _unnamed(self, number: float, origin: Expression | None) -> Source:
        found = self.trace.unnamed if origin is None else self.trace.computed
        path = self.space.running[-1]
        found.append(Source("", number, self.space.location(), path=path, origin=origin))
        return found[-1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outer, self.space.operation = self.space.operation, getattr(func, "__name__", str(func))
        try:
            run = stand_in_of(func)
            result = run(*args, **(kwargs or {}))
            if run is not func and torch.is_grad_enabled():
                result = _linked(result, [*args, *(kwargs or {}).values()])
            follow(func, args, kwargs or {}, result, self._unnamed)
            if func is F.scaled_dot_product_attention:
                channels = expression_of((args[0] if args else kwargs["query"]).shape[-1])
                self.trace.attended.setdefault(self.space.running[-1], {})[channels] = None
            return result
        finally:
            self.space.operation = outer
