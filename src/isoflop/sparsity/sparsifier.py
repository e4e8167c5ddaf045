"""The sparsifier: keeps a model sparse while any training loop trains it."""

import copy
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from isoflop.errors import IsoflopError
from isoflop.masks import set_mask
from isoflop.plan import Plan
from isoflop.sparsity import arguments
from isoflop.sparsity.allocation import Allocation
from isoflop.sparsity.method import METHODS, DropGrow, Method
from isoflop.sparsity.patterns import PATTERNS, Pattern
from isoflop.sparsity.targets import Target, from_plan, from_sparsity
from isoflop.surgery import ExampleInputs


def sparsify(
    model: nn.Module,
    optimizer: Optimizer,
    method: Method | str,
    *,
    plan: Plan | None = None,
    sparsity: float | None = None,
    allocation: Allocation | str | None = None,
    pattern: Pattern | str = "unstructured",
    total_steps: int,
    dense_ends: bool = True,
    example_inputs: ExampleInputs | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> "Sparsifier":
    """Mask the weights of `model` and keep them masked through every step of `optimizer`.

    The training loop stays as it is. Hooks on the optimizer mask gradients before each step, and
    weights and optimizer state after it; they change the masks when the method says so.

    Args:
        model: The model; its weights are masked in place. Wrap it in
            `DistributedDataParallel` or `torch.compile` afterwards.
        optimizer: The optimizer that trains it.
        method: A method such as ``RigL(alpha=0.3)``, or a registered name such as ``"rigl"``.
        plan: The plan that `isoflop.transform` returned with the model; says which weights are
            masked and how many non-zeros each keeps.
        sparsity: Without a plan: the fraction of the maskable weights that is zero, in [0, 1).
        allocation: How sparsity is spread over the layers; a registered name or a function. By
            default that of the plan, or uniform. Another one than the plan's is solved anew for
            the plan's FLOPs.
        pattern: Which weights may be non-zero together; a registered name or a pattern.
        total_steps: Optimizer steps of the whole training run, which the method's schedule spans.
        dense_ends: Without a plan: leave the first and the last layer dense.
        example_inputs: With `dense_ends`: inputs by which the first and the last layer are found
            in the flow of the data. By default the order of definition tells.
        exclude: Without a plan: globs over module paths, such as ``"blocks.*.proj"``, that stay
            dense with everything inside them.
        seed: Seed of all randomness of the sparsifier, which the global generators do not touch.

    Returns:
        The sparsifier. Keep it to save its state; training works without.

    Raises:
        IsoflopError: An argument is wrong. Nothing has been changed then.
    """
    method = arguments.find_instance(METHODS, Method, method)
    pattern = arguments.find_instance(PATTERNS, Pattern, pattern)
    arguments.check_integer("total_steps", total_steps, "the optimizer steps of the whole run")
    if total_steps < 1:
        raise IsoflopError(f"total_steps must be positive, not {total_steps}.")
    arguments.check_integer("seed", seed, "what the sparsifier's generator starts from")
    arguments.check_optimizer(optimizer)
    arguments.check_unmasked(model)
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    arguments.check_budget(method, plan, sparsity, exclude)

    if plan is not None:
        plan.check(model)
        plan = arguments.with_allocation(plan, allocation)
    allocation = arguments.find_allocation("uniform" if allocation is None else allocation)
    targets = []
    if method.masks_weights and plan is not None:
        targets = from_plan(model, plan)
    elif method.masks_weights:
        assert sparsity is not None
        targets = from_sparsity(
            model,
            sparsity,
            allocation,
            dense_ends=dense_ends,
            example_inputs=example_inputs,
            exclude=exclude,
        )
    arguments.check_trained(targets, optimizer)

    generator = torch.Generator().manual_seed(seed)
    for target in targets:
        weight = target.weight
        mask = pattern.random(tuple(weight.shape), target.nnz, generator)
        # `empty_like` takes over device and memory layout of the weight.
        mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(mask)
        set_mask(target.module, target.parameter, mask)
    return Sparsifier(targets, optimizer, method, pattern, generator, total_steps, plan)


class Sparsifier:
    """Keeps the weights of a model masked; made by `sparsify`.

    The masks live in the model, as buffers beside the weights, and travel in its `state_dict`.
    Everything else that a resumed run needs is in the `state_dict` of the sparsifier.

    Each step of the optimizer goes through three phases. Before it, the gradients of masked
    weights are zeroed, after being copied if an update needs them. After it, weights and optimizer
    state are masked, since weight decay and momentum know nothing of masks. Then, if due, the masks
    are updated. In distributed training every worker sees the same reduced gradients and draws the
    same random numbers, so all choose the same masks without exchanging them.

    A step that a gradient scaler leaves out is not counted. (A fused optimizer skips such steps
    inside; they count, but an update that needs dense gradients finds none finite and is skipped.)

    Attributes:
        method: The method.
        plan: The plan, with the allocation in use; None without one.
        total_steps: Optimizer steps of the whole run.
        step: Optimizer steps taken.
        history: One entry per update: ``step``; ``fraction``, what part of the active weights could
            be replaced; ``new``, how many weights of each layer became active that were not before;
            ``skipped``, whether non-finite gradients prevented the update.
        dense_gradient_steps: Steps whose dense gradients the method has used.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        optimizer: Optimizer,
        method: Method,
        pattern: Pattern,
        generator: torch.Generator,
        total_steps: int,
        plan: Plan | None,
    ) -> None:
        self.method = method
        self.plan = plan
        self.total_steps = total_steps
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.dense_gradient_steps = 0
        self._targets = tuple(targets)
        self._optimizer = optimizer
        self._pattern = pattern
        self._generator = generator
        # Gradients at the step under way, by name, if an update follows it; None if none does. The
        # value is None for a weight that was trained but whose dense gradient is not needed.
        self._gradients: dict[str, Tensor | None] | None = None
        self._mask_weights()
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *(t.weight.register_post_accumulate_grad_hook(self._grad_hook(t)) for t in targets),
        ]

    @property
    def masks(self) -> dict[str, Tensor]:
        """The present masks, by parameter name."""
        return {target.name: target.mask for target in self._targets}

    @property
    def nnz(self) -> dict[str, int]:
        """Number of active weights of each masked weight, by parameter name."""
        return {target.name: target.nnz for target in self._targets}

    def density(self) -> float:
        """Return the fraction of active weights among all weights that have a mask."""
        numel = sum(target.weight.numel() for target in self._targets)
        return sum(target.nnz for target in self._targets) / numel if numel else 1.0

    def remove(self) -> None:
        """Detach from model and optimizer; masks and zeros stay, but nobody keeps them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the states of model and optimizer."""
        return {
            "method": self.method.name,
            "config": self.method.config,
            "nnz": self.nnz,
            "step": self.step,
            "generator": self._generator.get_state(),
            "history": copy.deepcopy(self.history),
            "dense_gradient_steps": self.dense_gradient_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; load model and optimizer as well.

        Raises:
            IsoflopError: The state is that of another method or of other layers.
        """
        own = self.state_dict()
        if missing := [key for key in own if key not in state]:
            raise IsoflopError(
                f"This is no state of a sparsifier: {', '.join(missing)} missing. Pass what "
                "`sparsifier.state_dict()` returned."
            )
        for key, noun in (("method", "method"), ("config", "options")):
            if state[key] != own[key]:
                raise IsoflopError(
                    f"The saved run used the {noun} {state[key]!r}, this one {own[key]!r}. Call "
                    "`sparsify` with the method of the saved run."
                )
        if state["nnz"] != own["nnz"]:
            names = state["nnz"].keys() | own["nnz"].keys()
            differing = sorted(n for n in names if state["nnz"].get(n) != own["nnz"].get(n))
            raise IsoflopError(
                "The saved run masked other layers, or kept another number of weights in "
                f"{arguments.some_of(differing)}. Call `sparsify` with the plan or sparsity of the "
                "saved run."
            )
        self.step = state["step"]
        # A checkpoint that was loaded onto an accelerator has moved the generator's state there.
        self._generator.set_state(state["generator"].cpu())
        self.history = copy.deepcopy(state["history"])
        self.dense_gradient_steps = state["dense_gradient_steps"]

    def _update_due(self, step: int) -> bool:
        return self.method.update_due(step, self.total_steps)

    def _grad_hook(self, target: Target) -> Callable[[Tensor], None]:
        """Return a hook that zeroes the gradient of masked weights as soon as it is accumulated.

        The optimizer hooks would do for training, but they come too late for whatever reads
        gradients in between: clipping would measure the norm of weights that are not there. The
        exception is a step whose update needs dense gradients. Those must survive until the
        optimizer is called, because only then are they complete: accumulated over micro-batches,
        reduced over workers and unscaled.
        """
        # Autograd's hooks are invisible to the garbage collector; a strong reference from the
        # weight to the sparsifier, and so back to the weight, would never be freed.
        reference = weakref.ref(self)

        def hook(weight: Tensor) -> None:
            sparsifier = reference()
            if sparsifier is None or weight.grad is None:
                return
            if sparsifier.method.needs_dense_grad and sparsifier._update_due(sparsifier.step + 1):
                return
            _zero_where(~target.mask, [weight.grad])

        return hook

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        del optimizer
        self._gradients = None
        # The optimizer itself is args[0].
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._take_gradients()
            return None

        # Gradients do not exist before the optimizer calls the closure.
        def masked_closure() -> Any:
            loss = closure()
            self._take_gradients()
            return loss

        if len(args) > 1:
            return (args[0], masked_closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": masked_closure}

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Copy the gradients if an update needs them, then mask them."""
        trained = [(t, t.weight.grad) for t in self._targets]
        # An optimizer may call a closure several times; the first time is at the present weights.
        if self._gradients is None and self._update_due(self.step + 1):
            dense = self.method.needs_dense_grad
            self._gradients = {
                target.name: grad.detach().clone() if dense else None
                for target, grad in trained
                if grad is not None
            }
        for target, grad in trained:
            if grad is not None:
                _zero_where(~target.mask, [grad])

    @torch.no_grad()
    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        del optimizer, args, kwargs
        self._mask_weights()
        self.step += 1
        if self._gradients is not None:
            self._update(self._gradients)
            self._gradients = None

    @torch.no_grad()
    def _mask_weights(self) -> None:
        """Zero masked weights, and what the optimizer remembers about them."""
        for target in self._targets:
            weight = target.weight
            state = self._optimizer.state.get(weight, {})
            alike = (t for t in _tensors(state) if t.shape == weight.shape)
            _zero_where(~target.mask, itertools.chain([weight], alike))

    def _update(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Rewire every layer that was trained in the last step."""
        method = self.method
        assert isinstance(method, DropGrow)
        fraction = method.drop_fraction(self.step, self.total_steps)
        dense = [gradient for gradient in gradients.values() if gradient is not None]
        self.dense_gradient_steps += bool(dense)
        # Overflowed gradients say nothing about where to grow.
        skipped = not all(bool(gradient.isfinite().all()) for gradient in dense)
        new: dict[str, Tensor] = {}
        for target in () if skipped else self._targets:
            if target.name not in gradients:
                continue
            weight, mask = target.weight, target.mask
            rewired = self._pattern.rewire(
                mask,
                method.drop_scores(weight, mask),
                method.grow_scores(weight, mask, gradients[target.name], self._generator),
                math.floor(fraction * target.nnz),
            )
            new[target.name] = (rewired & ~mask).sum()
            mask.copy_(rewired)
        # New weights and their optimizer state are zero already: they were masked before. This
        # clears those that were dropped.
        self._mask_weights()
        self.history.append(
            {
                "step": self.step,
                "fraction": fraction,
                "new": {name: int(count) for name, count in new.items()},
                "skipped": skipped,
            }
        )


def _zero_where(inactive: Tensor, tensors: Iterable[Tensor]) -> None:
    """Zero the inactive positions, NaN and infinities included, which a product would keep."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.masked_fill_(inactive, 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in an optimizer's state, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
