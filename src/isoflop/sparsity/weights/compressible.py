"""What compressed storage cannot do, found before anything is changed."""

import gc
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from isoflop.errors import IsoflopError, OptimizerError
from isoflop.kernels.convert import has_sparse_form, own_names
from isoflop.kernels.cpu.conv2d import symmetric_padding
from isoflop.methods.base import METHODS, Method
from isoflop.patterns import PATTERNS, Pattern
from isoflop.sparsity.target import some_of
from isoflop.sparsity.targets import MaskedTarget
from isoflop.sparsity.weights.optimizers import tensors_in
from isoflop.sparsity.weights.sharding import is_sharded

DTYPES = (torch.float32, torch.bfloat16, torch.float64)

# LBFGS keeps a history of all parameters in one row; the others treat a matrix by rows and columns.
_REFUSED_OPTIMIZERS = ("LBFGS", "Muon", "Adafactor", "Shampoo", "SOAP")

_STEPS = 10_000

# Optimizers go on with what their parameters become; modules are looked at by themselves.
_OPAQUE = (nn.Module, Tensor, Optimizer, ModuleType, type)
_OWNERS = ("_parameters", "_buffers", "_modules")


def check_compressible(
    model: nn.Module,
    targets: Sequence[MaskedTarget],
    optimizer: Optimizer,
    method: Method,
    pattern: Pattern,
    total_steps: int,
) -> None:
    """Raise if weights cannot be compressed, or not trained so.

    Raises:
        IsoflopError: A layer, the method or the pattern needs masked storage.
        OptimizerError: The optimizer does.
    """
    _check_method(method, pattern, total_steps)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise IsoflopError(
            "The model is wrapped in DistributedDataParallel already, which would go on reducing the "
            "gradients of the dense weights. Call `sparsify` first, then wrap the model."
        )
    if picker := _picker_by_name(model):
        raise IsoflopError(
            f"{picker} picks parameters by `named_parameters`. In compressed storage the parameter of a "
            "sparse layer is the row of its non-zeros, named `values`, which code that asks for names "
            "ending in `weight`, or for matrices, would miss. Go through the modules there "
            "(`module.weight` can be used as before), or use storage='masked'."
        )
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{path}.{name}" if path else name)
    for target in targets:
        for problem in _problems(model, target, owners):
            raise IsoflopError(
                f"The weight {target.name!r} cannot be compressed: {problem}. Use storage='masked', or "
                "leave the layer dense by exclude (with a plan, an argument of `isoflop.transform`)."
            )
    kind = next(
        (c.__name__ for c in type(optimizer).mro() if c.__name__ in _REFUSED_OPTIMIZERS), ""
    )
    if kind:
        raise OptimizerError(
            f"{kind} does not work on compressed weights, which are one row of non-zeros. Use another "
            "optimizer, such as SGD or AdamW, or storage='masked'."
        )
    for target in targets:
        for tensor in tensors_in(optimizer.state.get(target.weight, {})):
            if tensor.numel() > 1 and tensor.shape != target.weight.shape:
                raise OptimizerError(
                    f"The optimizer's state of {target.name!r} has a tensor of shape "
                    f"{tuple(tensor.shape)}, which has no compressed form. Call `sparsify` before "
                    "the first step, or use storage='masked'."
                )


def trains_compressed(method: Method, pattern: Pattern) -> bool:
    """Return whether a method can train weights of a pattern in compressed storage."""
    step = _first_observed(method, _STEPS)
    return _compressible(method, step) and (step is None or pattern.preselects)


def _check_method(method: Method, pattern: Pattern, total_steps: int) -> None:
    step = _first_observed(method, total_steps)
    if not _compressible(method, step, total_steps):
        names = [n for n, m in METHODS.items() if _compressible(m(), _first_observed(m(), _STEPS))]
        raise IsoflopError(
            f"The method {method.name!r} cannot train compressed weights, since it uses values or "
            f"gradients of all weights throughout. Those that can are {', '.join(names)}; or use "
            "storage='masked'."
        )
    if step is not None and not pattern.preselects:
        names = [name for name, kind in PATTERNS.items() if kind.preselects]
        raise IsoflopError(
            f"With the pattern {pattern}, the method {method.name!r} needs all gradients of all layers "
            f"at once, which compressed storage does not keep. Use a pattern of the kinds "
            f"{', '.join(names)}, a method that grows without gradients, or storage='masked'."
        )
    workers = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if workers > 1 and method.pruning_schedule is not None:
        raise IsoflopError(
            f"The method {method.name!r} changes the number of weights, which "
            "DistributedDataParallel does not allow for parameters. Use storage='masked' with "
            "several workers."
        )


def _compressible(method: Method, step: int | None, total_steps: int = _STEPS) -> bool:
    if not method.masks_weights or method.keeps_dense_weights or method.remembers:
        return False
    return step is None or method.largest_growth(1, step, total_steps) is not None


def _first_observed(method: Method, total_steps: int) -> int | None:
    """Return the first step that computes dense gradients, or None."""
    steps = range(1, total_steps + 1)
    return next((step for step in steps if method.observes(step, total_steps)), None)


def _problems(
    model: nn.Module, target: MaskedTarget, owners: dict[int, list[str]]
) -> Iterator[str]:
    """Iterate over what forbids that the layer of `target` is replaced."""
    module, weight = target.module, target.module._parameters.get(target.parameter)
    if weight is None:
        yield "it is computed from other parameters"
        return
    if not has_sparse_form(module) or target.parameter != "weight":
        yield (
            f"it belongs to a {_kind(module)}, and only nn.Linear, nn.Conv2d (not their "
            "subclasses) and Hugging Face's Conv1D have a compressed form"
        )
    elif own := own_names(module):
        yield f"its layer was given {own[0]!r}, which sparse layers cannot keep, or use themselves"
    if len(names := owners[id(weight)]) > 1:
        yield f"it is tied: {some_of(names)} are one parameter"
    if is_sharded(weight):
        yield "it is sharded over several workers"
    elif weight.device.type != "cpu":
        yield f"it is on {weight.device}, and compressed layers run on the CPU"
    if weight.dtype not in DTYPES:
        yield f"its type {weight.dtype} is not float32, bfloat16 or float64"
    if isinstance(module, nn.Conv2d) and not symmetric_padding(module):
        yield "its convolution does not pad with the same number of zeros on both sides"
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        yield "it has hooks, which would get the gradients of the non-zeros alone"
    if holder := _holder(model, weight):
        yield f"{holder} holds it too, and would be left with a row of non-zeros"


def _picker_by_name(model: nn.Module) -> str:
    """Return the method that asks for names of parameters in a forward pass, or an empty string."""
    for kind in {type(module): None for module in model.modules()}:
        waiting, seen = ["forward"], set[str]()
        while waiting:
            name = waiting.pop()
            method = getattr(kind, name, None)
            if name in seen or not isinstance(method, FunctionType):
                continue
            seen.add(name)
            if not method.__module__.startswith(("torch.", "isoflop.")):
                codes = _codes(method.__code__)
                names = [name for code in codes for name in code.co_names]
                texts = [text for code in codes for text in code.co_consts if isinstance(text, str)]
                chooses = "ndim" in names or any("weight" in text for text in texts)
                if "named_parameters" in names and chooses:
                    return f"{kind.__name__}.{name}"
                waiting += names
    return ""


def _codes(code: CodeType) -> list[CodeType]:
    """Return the code of a function, and that of the functions and comprehensions in it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [code, *(found for each in inner for found in _codes(each))]


def _kind(module: nn.Module) -> str:
    """Return the name of the class, with that of its package where the name alone is PyTorch's."""
    kind = type(module)
    foreign = hasattr(nn, kind.__name__) and not kind.__module__.startswith("torch.")
    return f"{kind.__module__}.{kind.__name__}" if foreign else kind.__name__


def _holder(model: nn.Module, weight: nn.Parameter) -> str:
    """Return what holds `weight` besides modules that own it: a list, a closure, an object."""
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if name not in _OWNERS and _reaches(value, weight, {id(model)}):
                return f"the attribute {'.'.join(filter(None, (path, name)))!r}"
    return ""


def _reaches(value: Any, weight: Tensor, seen: set[int]) -> bool:
    """Tell whether `weight` is found in `value`, by whatever Python objects."""
    pending = [value]
    while pending:
        value = pending.pop()
        if value is weight:
            return True
        if id(value) in seen or isinstance(value, _OPAQUE):
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):  # not its globals
            pending += [value.__closure__, value.__defaults__, value.__kwdefaults__]
        else:
            pending += gc.get_referents(value)
    return False
