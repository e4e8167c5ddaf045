"""Whether a model really runs the layers that took the place of others."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoflop.errors import WideningError
from isoflop.fakes import fake_like, run_on_copy
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
        WideningError: An old layer is still reached, or a new one is not.
        InputError: The model cannot be run on the example inputs.
    """
    if not replaced:
        return
    used = _used_tensors(model, example_inputs, [old for old, _ in replaced.values()])
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


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _used_tensors(
    model: nn.Module, example_inputs: ExampleInputs, old: list[nn.Module]
) -> set[int]:
    """Return the ids of the tensors of `model` and of `old` that a forward pass uses."""
    originals: dict[int, int] = {}
    kept: list[Tensor] = []

    def make(_module: nn.Module, _path: str, _name: str, tensor: Tensor) -> Tensor:
        fake: Any = fake_like(tensor)
        fake = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        originals[id(fake)] = originals[id(tensor)] = id(tensor)
        kept.append(fake)
        return fake

    _, seen = run_on_copy(model, example_inputs, lambda *_: _Seen(), make=make, others=old)
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
