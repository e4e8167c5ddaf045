"""Whether a model really runs the layers that took the place of others."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoflop.errors import InputError, WideningError
from isoflop.flops.fakes import RunningModules, fake_like, run_on_copy
from isoflop.surgery import ExampleInputs


def check_replaced(
    model: nn.Module,
    example_inputs: ExampleInputs,
    replaced: Mapping[str, tuple[nn.Module, nn.Module]],
) -> None:
    """Refuse a model whose forward pass bypasses what took the place of its layers.

    `replace_modules` finds layers in attributes of modules and the containers there. Code may hold
    them elsewhere, as in a closure or an object of its own, and then runs the old layer, which
    nothing trains any more. One forward pass in evaluation on fake tensors shows which weights are
    used.

    Args:
        model: The model after the replacement; it is not changed, and may be on the meta device.
        example_inputs: See `isoflop.profile`.
        replaced: The old and the new module of every path, all of which ran before on these inputs.

    Raises:
        WideningError: An old layer is still reached, a new one is not, or the model does not run any
            more.
    """
    if not replaced:
        return
    used = _used_tensors(model, example_inputs, replaced)
    registered = {id(tensor) for tensor in _tensors(model)}
    for path, (old, new) in replaced.items():
        stale = any(id(t) in used and id(t) not in registered for t in _tensors(old))
        if stale or not any(id(tensor) in used for tensor in _tensors(new)):
            kind = type(old).__name__
            raise WideningError(
                f"{path or 'the model'} ({kind}) is to be replaced by {type(new).__name__}, but the "
                f"forward pass {'still runs the old layer' if stale else 'does not call the new one'}"
                ": the model holds it, or a method of it, in a place other than a module's attributes "
                f"and the lists, tuples and dicts there. Let the forward pass call it as a registered "
                f"child (`self.layer(x)`, nn.ModuleList, nn.ModuleDict), or exclude {path!r}."
            )


def _misfit(
    model: nn.Module,
    replaced: Mapping[str, tuple[nn.Module, nn.Module]],
    failed: str,
    error: InputError,
) -> WideningError:
    """Return why a model that ran before does not run any more, once its layers are replaced."""
    paths = [path for path in replaced if not path or f"{failed}.".startswith(f"{path}.")]
    path = max(paths, key=len, default=None)
    if path is None:
        what, advice = (
            "once its layers are replaced",
            "Exclude the layers that the code there uses.",
        )
    else:
        old, new = (type(module).__name__ for module in replaced[path])
        what = f"once {path or 'the model'} ({old}) is replaced by {new}"
        advice = f"Exclude {path!r}, or use SparseWide, which keeps the classes of layers."
    return WideningError(
        f"{type(model).__name__} runs on the example inputs, but not {what}: {error.reason or error}. "
        f"{advice}"
    )


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _used_tensors(
    model: nn.Module,
    example_inputs: ExampleInputs,
    replaced: Mapping[str, tuple[nn.Module, nn.Module]],
) -> set[int]:
    """Return the ids of the tensors of `model` and of the old layers that a forward pass uses."""
    originals: dict[int, int] = {}
    kept: list[Tensor] = []
    passes: list[RunningModules] = []

    def make(_module: nn.Module, _path: str, _name: str, tensor: Tensor) -> Tensor:
        fake: Any = fake_like(tensor)
        fake = (
            nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        )
        originals[id(fake)] = originals[id(tensor)] = id(tensor)
        kept.append(fake)
        return fake

    def watch(_fake: nn.Module, running: RunningModules, _inputs: list[Tensor]) -> _Seen:
        passes.append(running)
        return _Seen()

    old = [layer for layer, _ in replaced.values()]
    try:
        _, seen = run_on_copy(model, example_inputs, watch, make=make, others=old)
    except InputError as error:
        failed = passes[-1].failed if passes else None
        raise _misfit(model, replaced, failed or "", error) from error
    return {originals[key] for key in seen.ids if key in originals}


class _Seen(TorchDispatchMode):
    """Notes the tensors that operations take."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.ids.update(id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
        return func(*args, **kwargs)
