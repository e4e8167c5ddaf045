"""Running models on tensors that have shapes and no values."""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch

from isoflop.errors import InputError, IsoflopError
from isoflop.nests import map_tensors, tensors_in
from isoflop.rules import rule_of
from isoflop.surgery import check_module, is_compiled

_KNOWN_VALUES = 65536
"""Largest number of elements of an integer tensor whose values a trace follows."""

# With the separator: torchvision is not PyTorch.
_INNER = tuple(f"{Path(module).parent}{os.sep}" for module in (torch.__file__, __file__))


def fake_like(tensor: Tensor) -> Tensor:
    """Return an empty tensor like `tensor`; call under a `FakeTensorMode`.

    It always claims the CPU, so that models on the meta device mix with the constants that their
    forward pass makes.
    """
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cpu")


@contextlib.contextmanager
def fake_mode(*, cache: bool = True) -> Iterator[FakeTensorMode]:
    """Run on tensors that have a shape and no values.

    Small integer inputs, and what follows from them alone, keep their values: a length or a mask
    that a forward pass reads from token ids is known then.

    Args:
        cache: Look up the results of operations that ran before with the same shapes.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = cache
    # It would print the traceback of every error that comes to pass, besides raising it.
    log = logging.getLogger(fake_tensor.__name__)
    limit, silent = fake_tensor.CONSTANT_NUMEL_LIMIT, log.disabled
    log.disabled = True
    fake_tensor.CONSTANT_NUMEL_LIMIT = _KNOWN_VALUES
    try:
        with mode, _Copies():
            yield mode
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT, log.disabled = limit, silent


class _Copies(TorchFunctionMode):
    """Lets `copy.deepcopy` copy tensors without values.

    By itself it asks for the address of their memory, which they lack; where the sizes are symbolic
    too, that destroys the heap.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            new = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=False)
            memo[id(tensor)] = new.requires_grad_(tensor.requires_grad)
        return memo[id(tensor)]


def fake_inputs(mode: FakeTensorMode, value: Any) -> Any:
    """Replace every tensor in a nest of inputs by a fake one; call within `fake_mode`."""

    def fake(tensor: Tensor) -> Tensor:
        integral = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
        if not integral or tensor.is_meta or tensor.numel() > _KNOWN_VALUES:
            return fake_like(tensor)
        # A copy, as the forward pass may write to it.
        with no_dispatch():
            known = tensor.detach().to("cpu", copy=True)
        return mode.fake_tensor_converter.from_real_tensor(mode, known, make_constant=True)

    return map_tensors(value, fake)


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Keep PyTorch from running whole layers as one opaque operation, which no trace sees into.

    Nor does it read in a mask whether that is causal, which only a fused attention could use.
    """
    detect = transformer._detect_is_causal_mask
    fast_path = torch.backends.mha.get_fastpath_enabled()
    onednn = torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # Not `torch.backends.mkldnn.flags`, which warns about a TF32 mode that it sets as well.
    torch._C._set_mkldnn_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect
        torch._C._set_mkldnn_enabled(onednn)
        torch.backends.mha.set_fastpath_enabled(fast_path)


class RunningModules(list[str]):
    """The paths of the modules that run, the innermost last; begins with the root, ``""``.

    Hooks on the modules, which stay, keep it up to date.

    Attributes:
        failed: Path of the innermost module whose forward pass raised an error, if one did.
        finished: Paths of the modules whose forward pass came to its end.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__([""])
        self.failed: str | None = None
        self.finished: list[str] = []
        self._handled = sys.exc_info()[1]
        for path, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, path=path: self.append(path))
            module.register_forward_hook(self._leave, always_call=True)

    def _leave(self, *_: Any) -> None:
        path = self.pop()
        # A hook that is always called runs while the error is handled.
        if sys.exc_info()[1] is self._handled:
            self.finished.append(path)
        elif self.failed is None:
            self.failed = path


def follow_rules(model: nn.Module) -> None:
    """Put the forward passes that rules give in the place of the modules' own."""
    for module in model.modules():
        forward = rule_of(module).forward
        if forward is not None:
            module.forward = functools.partial(forward, module)


def grouped_product(
    x: Tensor, weight: Tensor, offs: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Return an empty tensor of the shape that `torch.nn.functional.grouped_mm` returns.

    Raises:
        ValueError: These are not the rows of all groups, (S, K), the matrices, (G, K, N), and the
            ends of the groups, (G,).
    """
    fits = x.ndim == 2 and weight.ndim == 3 and x.shape[1] == weight.shape[1]
    if not fits or offs is None or offs.shape[0] != weight.shape[0]:
        raise ValueError(f"grouped_mm of {tuple(x.shape)} and {tuple(weight.shape)}")
    return x.new_empty((x.shape[0], weight.shape[2]))


def check_model(model: Any) -> None:
    """Raise unless `model` is a module that traces can copy and look into.

    Raises:
        IsoflopError: It is none; the message says what to pass.
    """
    check_module(model)
    for path, module in model.named_modules():
        what = f"{path!r} of {type(model).__name__}" if path else "The model"
        if is_compiled(module):
            raise IsoflopError(
                f"{what} is compiled by torch.compile: pass the model as it was before "
                "(`compiled._orig_mod`), and compile what you get."
            )
        own: list[Any] = [*module._parameters.values(), *module._buffers.values()]
        if any(map(nn.parameter.is_lazy, own)):
            raise InputError(
                f"{what} is lazy and has no sizes yet. Run the model once on an input first."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise IsoflopError(
                f"{what} is a TorchScript program, which cannot be looked into: pass the Python "
                "module that it was made of."
            )


class NeedsGradientsError(InputError):
    """A forward pass that computes gradients of its own; it is to be traced with them."""


def run_on_fakes(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    running: RunningModules,
    *,
    gradients: bool = False,
) -> Any:
    """Run the forward pass of a model made of fake tensors.

    Args:
        model: The model.
        args: Positional arguments.
        kwargs: Keyword arguments.
        running: The modules that run.
        gradients: Whether operations are recorded for `torch.autograd.grad`.

    Raises:
        NeedsGradientsError: The forward pass takes gradients, and they are not recorded.
        InputError: The forward pass fails: the inputs do not fit, or it reads tensor values.
    """
    try:
        with torch.set_grad_enabled(gradients), warnings.catch_warnings():
            # Of re-entrant checkpointing, which a trace does without.
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
            return model(*args, **kwargs)
    except Exception as error:
        failure = _failure(model, args, kwargs, running, error)
        if not gradients and "does not require grad" in str(error):
            raise NeedsGradientsError(str(failure)) from error
        raise failure from error


def _failure(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    running: RunningModules,
    error: Exception,
) -> InputError:
    shapes = [tuple(t.shape) for t in tensors_in((args, kwargs))]
    reason = (
        f"{_place(model, running)}{_line(error)} raised {type(error).__name__}: "
        f"{str(error).strip().partition(chr(10))[0]}"
    )
    what = f"{type(model).__name__} cannot be traced with example inputs of shapes {shapes}: {reason}. "
    advice = (
        "Pass example_inputs that `model(*example_inputs)` accepts. A module whose course depends on "
        "the values of tensors cannot be traced; `isoflop.register_widening_rule` gives it a "
        "forward pass that can."
    )
    if isinstance(error, DynamicOutputShapeException):
        part = _largest_finished(model, running)
        advice = (
            "The size of what this operation returns depends on the values of tensors, which a "
            "trace does not have. "
            + (
                f"Transform a part of the model without it, such as `model.{part}`, "
                if part
                else ""
            )
            + ("or g" if part else "G")
            + "ive the module a forward pass without it by `isoflop.register_widening_rule`."
        )
    failure = InputError(f"{what}{advice}")
    failure.reason = reason
    return failure


def _largest_finished(model: nn.Module, running: RunningModules) -> str | None:
    """Return the part of the model with the most parameters that ran to its end."""
    sizes = {
        path: sum(p.numel() for p in model.get_submodule(path).parameters())
        for path in running.finished
        if path
    }
    return max(sizes, key=lambda path: sizes[path]) if sizes and max(sizes.values()) else None


def output_tensors(model: nn.Module, output: Any) -> list[Tensor]:
    """Return the tensors of what a model has returned.

    Raises:
        InputError: There are none.
    """
    tensors = tensors_in(plain_output(output))
    if not tensors:
        raise InputError(
            f"{type(model).__name__} returned {type(output).__name__}, in which no tensor was found: "
            "its outputs, whose sizes must stay, have to be known. Let the forward pass return them "
            "as a tensor, or in a tuple, dict, dataclass or object."
        )
    return tensors


def _place(model: nn.Module, running: RunningModules) -> str:
    if not running.failed:
        return ""
    return f"module {running.failed!r} ({type(model.get_submodule(running.failed)).__name__}), "


def _line(error: Exception) -> str:
    """Return where an error was raised, in the innermost code that is not PyTorch's or isoflop's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_INNER)]
    frame = (own or frames)[-1]
    return f"`{frame.line}` in {Path(frame.filename).name}:{frame.lineno}"


def plain_output(output: Any) -> Any:
    """Return a model output without the parts that a wider model returns wider.

    Of an output of transformers that has logits, these are the output: hidden states and caches
    beside them are widths of the model, which a wider model returns wider.
    """
    if type(output).__module__.startswith("transformers.") and "logits" in output:
        return output["logits"]
    if dataclasses.is_dataclass(output) and not isinstance(output, (dict, type)):
        return [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, dict):
        # Caches of transformers are objects of its own; what is wider in them is not looked into.
        caches = ("past_key_values", "cache_params", "mems")
        return {name: value for name, value in output.items() if name not in caches}
    return output
