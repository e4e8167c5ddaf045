"""What the tests of all public functions check alike."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest
import torch
from tests.torture.habit import HABITS, Habit, load_all, tensors_of
from torch import Tensor, nn
from torch._subclasses import FakeTensor

import isoflop
from isoflop.kernels import available, why_unavailable

T = TypeVar("T")

load_all()

every_habit = pytest.mark.parametrize("habit", HABITS.values(), ids=str)

needs_kernels = pytest.mark.skipif(not available(), reason=str(why_unavailable()))

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def attempt(
    habit: Habit,
    function: str,
    run: Callable[[], T],
    model: nn.Module,
    *optimizers: torch.optim.Optimizer,
    changes: bool = False,
) -> T | None:
    """Return what `run` returns, or None if the habit says that it refuses, and it did.

    Args:
        habit: The habit.
        function: Name of the public function that `run` calls.
        run: What to do.
        model: What must be left as it was by a refusal, and by functions that only look.
        optimizers: Likewise.
        changes: Whether the function changes the model where it does not refuse.
    """
    before = Snapshot(habit, model, optimizers)
    reason = habit.refusal(function)
    if reason is not None:
        with pytest.raises(isoflop.IsoflopError, match=reason):
            run()
        before.check()
        return None
    warning = habit.warning(function)
    with contextlib.nullcontext() if warning is None else pytest.warns(match=warning):
        result = run()
    if not changes:
        before.check()
    return result


class Snapshot:
    """All that a function which refuses, or only looks, must leave as it was."""

    def __init__(
        self, habit: Habit, model: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...] = ()
    ) -> None:
        self._habit, self._model, self._optimizers = habit, model, optimizers
        self._outputs = evaluated(habit, model)
        self._before = self._look()

    def check(self) -> None:
        """Raise unless all is as it was, and the model still computes the same."""
        after = self._look()
        for key, value in self._before.items():
            assert key in after, f"{key} is gone"
            assert _same(value, after[key]), f"{key} was {value}, is {after[key]}"
        assert not after.keys() - self._before.keys()
        check_concrete(self._model)
        assert_equal(evaluated(self._habit, self._model), self._outputs)

    def _look(self) -> dict[str, Any]:
        found: dict[str, Any] = {"random numbers": torch.get_rng_state()}
        for key, value in self._model.state_dict().items():
            known = isinstance(value, Tensor) and not nn.parameter.is_lazy(value)
            found[f"state {key}"] = value.clone() if known else repr(value)
        for path, module in self._model.named_modules(remove_duplicate=False):
            found[f"module {path}"] = [id(module), type(module), module.training]
            for name in _HOOKS:
                found[f"{path}{name}"] = list(map(id, getattr(module, name, {}).values()))
            tensors = (
                module.named_parameters("", False, False),
                module.named_buffers("", False, False),
            )
            for name, tensor in itertools.chain(*tensors):
                found[f"tensor {path}.{name}"] = _identity(tensor)
            for name, value in vars(module).items():
                if f"{path}.{name}".removeprefix(".") not in self._habit.changes_itself:
                    kept = isinstance(value, (int, float, str))
                    found[f"attribute {path}.{name}"] = value if kept else id(value)
        for number, optimizer in enumerate(self._optimizers):
            found[f"optimizer {number}"] = [
                [id(p) for group in optimizer.param_groups for p in group["params"]],
                len(optimizer.state),
                len(optimizer._optimizer_step_pre_hooks),
                len(optimizer._optimizer_step_post_hooks),
            ]
        return found


def _identity(tensor: Tensor) -> list[Any]:
    hooks = getattr(tensor, "_backward_hooks", None), tensor._post_accumulate_grad_hooks
    grad = tensor.grad if tensor.is_leaf else None
    return [id(tensor), tensor.requires_grad, id(grad), *(len(h or {}) for h in hooks)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and bool(torch.equal(one.to_dense(), other.to_dense()))
    return type(one) is type(other) and repr(one) == repr(other)


def check_concrete(model: nn.Module) -> None:
    """Raise if anything that a module holds is a fake tensor or a symbolic size."""
    seen: set[int] = set()

    def walk(value: Any, where: str) -> None:
        assert not isinstance(value, (FakeTensor, torch.SymInt, torch.SymFloat, torch.SymBool)), (
            where
        )
        if id(value) in seen or isinstance(value, (str, int, float, Tensor, type)):
            return
        seen.add(id(value))
        for key, item in _held_by(value).items():
            walk(item, f"{where}.{key}")

    walk(model, type(model).__name__)


def _held_by(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple, set)):
        return dict(enumerate(value))
    if isinstance(value, functools.partial):
        return {"func": value.func, **dict(enumerate(value.args)), **value.keywords}
    held = dict(getattr(value, "__dict__", {}))
    for number, cell in enumerate(getattr(value, "__closure__", None) or ()):
        with contextlib.suppress(ValueError):  # an empty cell
            held[number] = cell.cell_contents
    if hasattr(value, "__self__"):
        held["__self__"] = value.__self__
    return held


@torch.no_grad()
def evaluated(habit: Habit, model: nn.Module, seed: int = 1) -> list[Tensor]:
    """Return the outputs of a model in evaluation; its modes stay. Lazy models are not run."""
    if any(nn.parameter.is_lazy(p) for p in model.parameters()):
        return []
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return [t.clone() for t in tensors_of(habit.run(model, seed))]
    finally:
        for module, mode in modes.items():
            module.training = mode


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Raise unless all tensors have the same bits."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.to_dense(), other.to_dense())


def assert_close(ours: list[Tensor], theirs: list[Tensor], rounding: float = 1e-4) -> None:
    """Raise unless all tensors are the same up to rounding."""
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        if other.dtype.is_floating_point or other.dtype.is_complex:
            scale = other.detach().abs().nan_to_num(0, 0, 0).max() if other.numel() else 0.0
            error = max(rounding, 0.05 if other.dtype == torch.bfloat16 else 0)
            # What would be zero in exact arithmetic is as large as the rounding of something else.
            limit = error * float(scale) + 1e-7
            torch.testing.assert_close(one, other, rtol=0, atol=limit, equal_nan=True)
        else:
            assert torch.equal(one, other)
