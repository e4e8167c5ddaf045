"""Running models on tensors that have shapes and no values."""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch

from isoflop.errors import InputError, IsoflopError
from isoflop.flops.copies import Make, copy_with_tensors
from isoflop.flops.packed import ON_PACKED, known_order
from isoflop.flops.rules import rule_of
from isoflop.flops.untouched import untouched
from isoflop.nests import map_tensors, tensors_in
from isoflop.randomness import kept_random_state
from isoflop.surgery import (
    ExampleInputs,
    check_module,
    is_compiled,
    normalize_inputs,
    scripted_parts,
)

_KNOWN_VALUES = 65536
"""Largest number of elements of an integer tensor whose values a trace follows."""

# With the separator: torchvision is not PyTorch.
_INNER = tuple(
    f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)


def fake_like(tensor: Tensor) -> Tensor:
    """Return an empty tensor like `tensor`; call under a `FakeTensorMode`.

    It always claims the CPU, so that models on the meta device mix with the constants that their
    forward pass makes. Tensors that store their non-zeros only stay as they are: they tell how many.
    """
    if tensor.layout != torch.strided:
        return tensor
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
        with mode, _StandIns(mode), known_order():
            yield mode
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT, log.disabled = limit, silent


class _StandIns(TorchFunctionMode):
    """Takes the place of functions that look into the memory of tensors, where these have none."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return _copied(*args)
        run: Any = ON_PACKED.get(func, func)
        result = run(*args, **(kwargs or {}))
        if func is torch.arange and all(type(value) is int for value in args):
            return self._known(result, args)
        return result

    def _known(self, fake: Tensor, args: tuple[int, ...]) -> Tensor:
        """Return numbers in a row with their values, as small integer inputs have."""
        if fake.dtype != torch.int64 or fake.numel() > _KNOWN_VALUES:
            return fake
        with no_dispatch():
            known = torch.arange(*args, device="cpu")
        return self._mode.fake_tensor_converter.from_real_tensor(
            self._mode, known, make_constant=True
        )


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Copy a tensor without values for `copy.deepcopy`.

    By itself it asks for the address of their memory, which they lack; where the sizes are symbolic
    too, that destroys the heap.
    """
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
        sparse = tensor.layout != torch.strided
        if not integral or sparse or tensor.is_meta or tensor.numel() > _KNOWN_VALUES:
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
    # Importing the compiler takes long, and nothing else compiles.
    compiling = {"torch._dynamo", "torch.nn.attention.flex_attention"} & sys.modules.keys()
    try:
        with torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext():
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


def forgive_hooks(model: nn.Module) -> None:
    """Let hooks that fail for want of values, such as those that print a mean, do nothing.

    Others are part of the model: those of PyTorch, and methods of modules.
    """
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                function: Any = getattr(hook, "func", hook)
                method = isinstance(getattr(function, "__self__", None), nn.Module)
                home = getattr(function, "__module__", None) or ""
                if not method and not home.startswith("torch."):
                    hooks[key] = functools.partial(_forgiven, hook)


def _forgiven(hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return hook(*args, **kwargs)
    except Exception:
        return None


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
    for path in scripted_parts(model):
        what = f"{path!r} of {type(model).__name__}" if path else "The model"
        raise IsoflopError(
            f"{what} is a TorchScript program, which cannot be looked into: pass the Python module that "
            "it was made of."
        )


_WatchT = TypeVar("_WatchT", bound=AbstractContextManager[Any])


def _make_fake(_module: nn.Module, _path: str, _name: str, tensor: Tensor) -> Tensor:
    return fake_like(tensor)


def run_on_copy(
    model: nn.Module,
    example_inputs: ExampleInputs,
    watch: Callable[[nn.Module, "RunningModules", list[Tensor]], _WatchT],
    *,
    make: Make = _make_fake,
    others: Sequence[nn.Module] = (),
) -> tuple[Any, _WatchT]:
    """Run one forward pass, in evaluation mode, of a copy of a model that is made of fake tensors.

    Args:
        model: The model.
        example_inputs: See `isoflop.profile`.
        watch: Called with the copy, its running modules and the tensors that it takes; returns the
            context in which the pass runs.
        make: Makes the tensors of the copy, see `copy_with_tensors`.
        others: Modules that the model may lead to by other ways than as its children.

    Returns:
        What the model returns, and the context.

    Raises:
        InputError: The model cannot be run on the example inputs.
    """
    args, kwargs = normalize_inputs(model, example_inputs)

    def run(*, gradients: bool) -> tuple[Any, _WatchT]:
        with untouched(model), unfused(), fake_mode() as mode:
            fake = _copy(model, make, others)
            # Training first: by convention it clears what modules keep between evaluations.
            fake.train().eval()
            follow_rules(fake)
            forgive_hooks(fake)
            given, named = fake_inputs(mode, (args, kwargs))
            running = RunningModules(fake)
            with watch(fake, running, tensors_in((given, named))) as context:
                return run_on_fakes(fake, given, named, running, gradients=gradients), context

    try:
        return run(gradients=False)
    except NeedsGradientsError:
        return run(gradients=True)


def _copy(model: nn.Module, make: Make, others: Sequence[nn.Module]) -> nn.Module:
    if not others:
        return copy_with_tensors(model, make, share_others=True)
    # One copy of all, in which what is held in two places is the copy of the same module.
    together = copy_with_tensors(nn.ModuleList([model, *others]), make, share_others=True)
    return together.get_submodule("0")


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
        with (
            torch.set_grad_enabled(gradients),
            warnings.catch_warnings(),
            kept_random_state(model),
        ):
            # Of re-entrant checkpointing, which a trace does without.
            warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
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
        "A module whose course depends on the values of tensors cannot be traced; "
        "`isoflop.register_widening_rule` gives it a forward pass that can."
    )
    if not isinstance(error, DataDependentOutputException):
        advice = f"Pass example_inputs that `model(*example_inputs)` accepts. {advice}"
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
        if "_pack_padded_sequence" in str(error):
            advice = (
                "The lengths of packed sequences have to be known: give them as integers, which "
                "example_inputs hold with their values, or compute them from such; or pass "
                "`pack_padded_sequence` numbers."
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
