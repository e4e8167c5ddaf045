"""Gradients of a model at masked weights, without touching the model."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils.hooks import RemovableHandle

from isoflop.errors import InputError
from isoflop.flops.copies import copy_with_tensors

Objectives = Callable[[nn.Module], Iterable[Tensor]]
"""Runs a model and yields scalars, one per batch."""

_TWICE = (
    "The method differentiates the loss twice, which this model does not allow: it runs a backward pass "
    "inside of one, as re-entrant checkpointing does, or has an operation without a second derivative. "
    "Call torch.utils.checkpoint with use_reentrant=False, or use another method, such as isoflop.SNIP()."
)

_SCALES = ("weight", "gamma")


class ScoringModel:
    """A copy of a model, in which weights can be masked and differentiated at will.

    Scales that are zero throughout (the last norm of a residual branch, often) are one in the copy:
    behind such a scale every gradient is exactly zero, so that the scores of whole branches would
    be nothing but ties. Dropout is switched off. Otherwise the copy is in training mode: norms use
    the statistics of the batch. Random numbers that the forward pass may draw are seeded, and the
    global generators are left as they were.

    Args:
        model: The model; neither it nor its buffers and gradients are changed.
        names: Names of the weights to differentiate with respect to.
        objectives: What to differentiate.
        generator: Where the seed comes from.
        dtype: Type of all floating-point numbers in the copy; None for that of the model.

    Attributes:
        model: The copy.
        weights: Its weights before any was masked, in the order of `names`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        objectives: Objectives,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model = copy_with_tensors(model, lambda _m, _p, _n, t: t.detach().clone())
        if dtype is not None:
            self.model.to(dtype)
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
            for name in _SCALES:
                scale = module._parameters.get(name)
                if scale is not None and scale.ndim <= 1 and not scale.any():
                    nn.init.ones_(scale)
        self._parameters = [self.model.get_parameter(name) for name in names]
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._objectives = objectives
        self._seed = int(torch.randint(2**62, (), generator=generator))
        self.weights = [parameter.detach().clone() for parameter in self._parameters]

    def gradients(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean gradient at the weights times `masks`, at all positions."""
        with self._masked(masks) as objectives:
            return self._mean(self._first(objective) for objective in objectives)

    def hessian_gradient_products(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return ``H g``, of the mean Hessian and the mean gradient.

        Raises:
            InputError: The loss cannot be differentiated twice.
        """
        gradients = self.gradients(masks)

        def product(objective: Tensor) -> Sequence[Tensor]:
            first = self._second(objective, create_graph=True)
            inner = sum(
                (a * b).sum() for a, b in zip(first, gradients, strict=True) if a.requires_grad
            )
            return self._second(inner) if isinstance(inner, Tensor) else [*map(_zeros, first)]

        with self._masked(masks) as objectives:
            return self._mean(product(objective) for objective in objectives)

    def _first(self, objective: Tensor) -> list[Tensor]:
        """Return the gradient, by `backward`: re-entrant checkpointing forbids anything else."""
        _check_objective(objective)
        # Parameters of the loss, say, which get gradients too.
        before = [(leaf, leaf.grad) for leaf in _leaves(objective)]
        try:
            objective.backward()
        except RuntimeError as error:
            raise InputError(
                f"The loss cannot be differentiated: {error}. Pass a model and a loss that train."
            ) from error
        gradients = [_zeros(p) if p.grad is None else p.grad for p in self._parameters]
        for leaf, grad in before:
            leaf.grad = grad
        self.model.zero_grad()
        return gradients

    def _second(self, objective: Tensor, *, create_graph: bool = False) -> Sequence[Tensor]:
        """Return the gradient at the weights; of the loss, or of what its gradient was used in."""
        _check_objective(objective)
        try:
            with _functions_once(objective) as once:
                gradients = torch.autograd.grad(
                    objective,
                    self._parameters,
                    create_graph=create_graph,
                    allow_unused=True,
                    materialize_grads=True,
                )
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(f"{_TWICE} ({error})") from error
        if create_graph and once:
            raise InputError(
                f"The method differentiates the loss twice, but the autograd function {once[0]!r} has a "
                "first derivative only: its `backward` is marked `once_differentiable`, or computes "
                "outside of autograd (NumPy, torch.no_grad, a kernel of its own). Its part of the scores "
                "would be missing. Compute its gradient by PyTorch operations on `ctx.saved_tensors`, "
                "exclude nothing, or use another method, such as isoflop.SNIP()."
            )
        if any(p.grad is not None for p in self.model.parameters()):
            self.model.zero_grad()
            raise InputError(_TWICE)
        return gradients

    @contextlib.contextmanager
    def _masked(self, masks: Sequence[Tensor]) -> Iterator[Iterator[Tensor]]:
        """Mask the weights of the copy and give the objectives, by the same random numbers."""
        for parameter, weight, mask in zip(self._parameters, self.weights, masks, strict=True):
            with torch.no_grad():
                parameter.copy_(weight.masked_fill(~mask.to(weight.device), 0))
        devices = {p.device for p in self._parameters if p.device.type == "cuda"}
        with torch.enable_grad(), torch.random.fork_rng(list(devices)):
            torch.manual_seed(self._seed)
            yield iter(self._objectives(self.model))

    def _mean(self, batches: Iterator[Sequence[Tensor]]) -> list[Tensor]:
        """Return the mean over batches, and over the workers of a distributed run."""
        total = [_zeros(weight) for weight in self.weights]
        count = 0
        for gradients in batches:
            count += 1
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_ += gradient.detach()
        if dist.is_available() and dist.is_initialized():
            # Every worker has scored batches of its own; all must come to the same masks.
            for sum_ in total:
                dist.all_reduce(sum_)
            count *= dist.get_world_size()
        return [sum_ / count for sum_ in total]


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, requires_grad=False)


def _check_objective(objective: Tensor) -> None:
    if not isinstance(objective, Tensor) or objective.numel() != 1:
        shape = f" of shape {tuple(objective.shape)}" if isinstance(objective, Tensor) else ""
        raise InputError(
            "The loss must return a tensor with one number, as F.cross_entropy does; this one "
            f"returned {type(objective).__name__}{shape}."
        )


@contextlib.contextmanager
def _functions_once(objective: Tensor) -> Iterator[list[str]]:
    """Find the functions written in Python whose gradient autograd cannot differentiate any further.

    PyTorch would take their second derivatives for zero.

    Yields:
        Their names, once a backward pass with `create_graph` has run.
    """
    found: list[str] = []

    def watch(node: Any) -> RemovableHandle:
        def hook(grads: Sequence[Tensor | None], outer: Sequence[Tensor | None]) -> None:
            if not any(g is not None and g.requires_grad for g in outer):
                return
            if any(g is not None and _is_cut_off(g) for g in grads):
                found.append(type(node).__name__.removesuffix("Backward"))

        return node.register_hook(hook)

    nodes = (node for node in _nodes(objective) if isinstance(node, BackwardCFunction))
    handles = [watch(node) for node in nodes]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _is_cut_off(grad: Tensor) -> bool:
    """Tell whether a gradient, not zero, depends on nothing any more, as far as autograd knows."""
    node = grad.grad_fn
    # What `once_differentiable` puts there raises an error if it is run, but no path leads on from it.
    if grad.requires_grad and not (node is not None and node.name().endswith("::Error")):
        return False
    return bool(grad.detach().any())


def _leaves(objective: Tensor) -> Iterator[Tensor]:
    """Iterate over the tensors that a backward pass adds gradients to."""
    for node in _nodes(objective):
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf


def _nodes(objective: Tensor) -> Iterator[Any]:
    """Iterate over the nodes of the graph of a scalar."""
    pending, seen = [objective.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending += [following for following, _ in node.next_functions]
