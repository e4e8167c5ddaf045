"""Inputs to run a model on, and whether a copy of it computes the same."""

import contextlib
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves

from isoflop.errors import InputError, IsoflopError
from isoflop.flops.copies import copy_with_tensors, owned_tensors
from isoflop.flops.fakes import plain_output
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.nests import map_tensors, tensors_in
from isoflop.randomness import kept_random_state
from isoflop.surgery import ExampleInputs, check_module, normalize_inputs, scripted_parts

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model."""


def real_inputs(model: nn.Module, example_inputs: ExampleInputs) -> Inputs:
    """Return example inputs as `(args, kwargs)`; tensors without values get random ones.

    Raises:
        InputError: They are no example inputs, or the model has no values to run on them.
    """
    check_module(model)
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise InputError(
            f"{type(model).__name__} has lazy modules without parameters yet. Run it once on an input."
        )
    for path in scripted_parts(model):
        raise InputError(
            f"{path or type(model).__name__!r} is compiled by torch.jit, and its layers cannot be "
            "replaced. Pass the model before torch.jit.script or torch.jit.trace."
        )
    devices = {parameter.device for parameter in model.parameters()}
    if any(device.type == "meta" for device in devices):
        raise InputError(
            f"{type(model).__name__} has parameters on the meta device, which have no values. Load its "
            "weights first: `model.to_empty(device='cpu')`, then `load_state_dict`."
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def real(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        generator = torch.Generator(device).manual_seed(0)
        values = torch.randn(tensor.shape, generator=generator, device=device)
        return values.to(tensor.dtype)

    args, kwargs = normalize_inputs(model, example_inputs)
    return map_tensors(args, real), map_tensors(kwargs, real)


class Reference:
    """What a model computes in evaluation, for copies of it to be compared with.

    It runs on the example inputs, and on two more batches like them with other values, as far as it
    takes these. So a copy that has learned the values of the example by heart is found out.

    Args:
        model: Any module; it is not changed.
        example_inputs: What it takes; see `isoflop.profile`.

    Attributes:
        inputs: The example inputs, with values.
        output: What the model returns for them.

    Raises:
        InputError: The model cannot be run on the example inputs.
        IsoflopError: No copy of the model is independent of it.
    """

    def __init__(self, model: nn.Module, example_inputs: ExampleInputs) -> None:
        self.inputs = real_inputs(model, example_inputs)
        self._model = model
        copied = _copy(model)
        own = ((f"{p}.{name}" if p else name, t) for _, p, name, t in owned_tensors(model))
        touched: set[str] = set()
        with Uses(own, touched.add):
            output = _run(copied, self.inputs, 0)
        if touched:
            raise IsoflopError(
                f"A copy of {type(model).__name__} still computes with {min(touched)!r} of the model "
                "itself: a function that the model holds, such as a lambda over `self`, cannot be copied "
                "with it. Make it a method."
            )
        if isinstance(output, types.GeneratorType):
            raise InputError(
                f"{type(model).__name__} returned a generator, whose code runs only while somebody asks "
                "for what it yields. Let the forward pass return a list."
            )
        self.output = output
        self._runs = [(self.inputs, output)]
        for seed, change in enumerate(_CHANGES, start=1):
            changed = map_tensors(self.inputs, change)
            with contextlib.suppress(Exception):  # it need not take other values
                self._runs.append((changed, _run(copied, changed, seed)))

    def copy(self) -> nn.Module:
        """Return a new copy of the model, in evaluation mode, that needs no gradients."""
        copied = _copy(self._model)
        for parameter in copied.parameters():
            parameter.requires_grad_(False)
        return copied

    def agrees(self, other: nn.Module) -> bool:
        """Return whether `other` computes the same but for rounding, relative to the largest value."""
        copied = _copy(other)  # running may change what a module keeps
        try:
            outputs = [_run(copied, inputs, seed) for seed, (inputs, _) in enumerate(self._runs)]
        except Exception:  # whatever a model may raise in which layers were replaced
            return False
        return all(map(_equal, outputs, (output for _, output in self._runs)))


@contextlib.contextmanager
def running(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Tell of errors in the forward pass of a model on these inputs as `InputError`."""
    try:
        yield
    except IsoflopError:
        raise
    except Exception as error:
        shapes = [tuple(t.shape) for t in tensors_in(inputs)]
        raise InputError(
            f"{type(model).__name__} cannot be run on example inputs of shapes {shapes}: "
            f"{type(error).__name__}: {error}. Pass example_inputs that `model(*example_inputs)` accepts."
        ) from error


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Let a model be run, and give it back its statistics, gradients and modes afterwards."""
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = {
        buffer: buffer.clone()
        for module in model.modules()
        if not isinstance(module, SparseLayer)  # whose index nothing changes
        for buffer in module._buffers.values()
        if buffer is not None
    }
    for parameter in gradients:
        parameter.grad = None
    try:
        with kept_random_state(model):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, training in modes.items():
            module.training = training


def is_untouched(module: nn.Module) -> bool:
    """Tell whether calling a module runs the forward pass of its class on its own parameters."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not (hooked or "forward" in module.__dict__ or "parametrizations" in module._modules)


class Uses(TorchFunctionMode):
    """Tells which of some tensors are handed to functions that may read their values.

    Args:
        tensors: The tensors by name.
        tell: Called with the name at each use.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]], tell: Callable[[str], Any]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors}
        self._tell = tell

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _READ:
            for leaf in tree_leaves((args, kwargs)):
                name = self._names.get(id(leaf))
                if name is not None:
                    self._tell(name)
        return func(*args, **kwargs)


_READ = {
    *(getattr(Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "layout")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
}
"""What reads no values."""


@torch.no_grad()
def _copy(model: nn.Module) -> nn.Module:
    return copy_with_tensors(model, lambda *args: args[-1].detach().clone()).eval()


def _noise(tensor: Tensor) -> Tensor:
    """Return a tensor of other values: noise, or the same integers in the reverse order."""
    if not tensor.numel() or tensor.layout is not torch.strided or tensor.is_quantized:
        return tensor
    if tensor.is_floating_point() or tensor.is_complex():
        generator = torch.Generator(tensor.device).manual_seed(1)
        shape, dtype = tensor.shape, torch.promote_types(tensor.dtype, torch.float32)
        noise = torch.randn(shape, generator=generator, device=tensor.device, dtype=dtype)
        return noise.to(tensor.dtype)
    return tensor.flatten().flip(0).view(tensor.shape)


def _opposite_noise(tensor: Tensor) -> Tensor:
    noise = _noise(tensor)
    return -noise if tensor.is_floating_point() or tensor.is_complex() else noise


_CHANGES = (_noise, _opposite_noise)


def _run(model: nn.Module, inputs: Inputs, seed: int) -> Any:
    """Return the output of a model that is in evaluation mode.

    Raises:
        InputError: The forward pass fails.
    """
    # Models may change their inputs in place.
    args, kwargs = map_tensors(inputs, torch.clone)
    with running(model, inputs), torch.no_grad(), kept_random_state(model, seed):
        return model(*args, **kwargs)


def _equal(ours: Any, theirs: Any) -> bool:
    """Return whether two outputs are the same but for rounding."""
    kinds = [dict if type(output) is OrderedDict else type(output) for output in (ours, theirs)]
    our_leaves, our_tree = _leaves(ours)
    their_leaves, their_tree = _leaves(theirs)
    if kinds[0] is not kinds[1] or our_tree != their_tree:
        return False
    # An output that shows no values says nothing about the model.
    shown = any(isinstance(leaf, (Tensor, int, float, complex, str)) for leaf in their_leaves)
    return (
        bool(shown)
        and len(our_leaves) == len(their_leaves)
        and all(map(_same, our_leaves, their_leaves))
    )


def _leaves(output: Any) -> tuple[list[Any], Any]:
    """Return the values of an output, those in objects of other classes too, and how it nests them."""
    leaves, tree = tree_flatten(plain_output(output))
    return [part for leaf in leaves for part in (tensors_in(leaf) or [leaf])], tree


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (float, complex)) and isinstance(b, (float, complex)):
        a, b = torch.tensor(a), torch.tensor(b)
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and (not isinstance(b, (int, str)) or bool(a == b))
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if b.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if b.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if not b.is_floating_point():
        return torch.equal(a, b)
    tolerance = torch.finfo(b.dtype).eps ** 0.5
    scale = float(b.abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)
