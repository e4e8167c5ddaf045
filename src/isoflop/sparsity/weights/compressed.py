"""Weights of which the non-zeros alone are stored, with gradients and optimizer state as short."""

import logging
import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from isoflop.errors import IsoflopError, NoEffectWarning
from isoflop.kernels.convert import compress
from isoflop.kernels.cpu.index import BLOCK_ROWS
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.masks import get_mask
from isoflop.patterns import Pattern
from isoflop.sparsity.gradients import averaged, changes, warn_of_unknown, workers
from isoflop.sparsity.target import Target
from isoflop.sparsity.targets import MaskedTarget
from isoflop.sparsity.weights.base import Gradients, Storage
from isoflop.sparsity.weights.optimizers import convert_state, state_tensors
from isoflop.surgery import become, is_fan_in_fan_out

LOGGER = logging.getLogger("isoflop")


@dataclass(frozen=True)
class CompressedTarget(Target):
    """The weight of a layer that stores its non-zeros.

    Attributes:
        module: The layer.
        optimizer: The optimizer, whose state of the values changes with them.
        chosen: By name of the weight, the flat positions that an update has chosen so far.
    """

    module: nn.Module
    optimizer: Optimizer
    chosen: dict[str, Tensor]

    @property
    def layer(self) -> SparseLayer:
        """The layer, as long as it is sparse."""
        if not isinstance(self.module, SparseLayer):
            raise IsoflopError(
                f"The layer of {self.name!r} was made dense while a sparsifier still uses it. Call "
                "`sparsifier.remove()` before `isoflop.densify_`, or use `isoflop.densify`, which "
                "returns a copy."
            )
        return self.module

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight in the dense layer."""
        return self.layer.dense_shape

    @property
    def mask(self) -> Tensor:
        """The mask, made of the index, or that chosen by the update under way."""
        positions = self.chosen.get(self.name)
        if positions is None:
            # A layer that was made dense, for a look at it after the training, has its mask.
            mask = get_mask(self.module)
            return self.layer.mask() if mask is None else mask
        mask = torch.zeros(math.prod(self.shape), dtype=torch.bool)
        mask[positions.long()] = True
        return mask.view(self.shape)

    @property
    def place(self) -> tuple[nn.Module, str]:
        """The layer, and the name of its values."""
        return self.layer, "values"

    @property
    def trained(self) -> nn.Parameter:
        """The values."""
        return self.layer.values

    def mask_mark(self) -> object:
        """Return the number of values, which is all that is known of the mask without making it."""
        return len(self.layer.values)

    def count(self) -> Tensor:
        """Return how many values there are."""
        return torch.tensor(len(self.layer.values))

    def stray(self) -> int:
        """Return 0: there are no weights off the mask."""
        return 0

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return weight and mask, made of values and index."""
        return self.layer.dense_weight(), self.mask

    def choose(self, mask: Tensor) -> None:
        """Note the new mask; an update may change it once more before `commit`.

        So a weight that is pruned and grown in one update keeps its value and its state.
        """
        self.chosen[self.name] = _positions(mask)

    def commit(self) -> None:
        """Change values, gradient and optimizer state to the mask that was chosen, if any was."""
        if self.name in self.chosen:
            alike = state_tensors(self.optimizer, self.layer.values)
            self.layer.drop_and_grow(self.mask, alike)
            del self.chosen[self.name]

    def placed(self, tensor: Tensor) -> Tensor:
        """Return a copy."""
        return tensor.clone()

    def by_output(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as a matrix, a row for each output of the layer."""
        return (tensor.t() if self.layer.fan_in_fan_out else tensor).flatten(1)


@dataclass(frozen=True)
class Excerpt:
    """Of a dense gradient, all that an update can ask for.

    Attributes:
        positions: Flat positions of the non-zeros, and of the candidates for growth.
        gradient: The gradient there.
        finite: Whether the dense gradient was finite; if not, the rest is empty.
    """

    positions: Tensor
    gradient: Tensor
    finite: bool

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """Return the gradient in the shape of the weight, zero at all other positions."""
        flat = self.gradient.new_zeros(math.prod(shape))
        flat[self.positions.long()] = self.gradient
        return flat.view(shape)

    def plus(self, dense: Tensor) -> "Excerpt":
        """Return the excerpt of the sum with a gradient that is zero but at the non-zeros."""
        if not self.finite:
            return self
        return replace(self, gradient=self.gradient + dense.flatten()[self.positions.long()])


@dataclass
class Coming:
    """A gradient on its way to `.grad`, unless `torch.autograd.grad` has asked for it.

    Attributes:
        values: The gradient of the values.
        dense: That of the dense weight; None if the pass did not go through the layer.
        before: What `.grad` was, where hooks of the user's may change what is added to it.
    """

    values: Tensor
    dense: Tensor | None
    before: Tensor | None


class Observation:
    """The dense gradient of one layer, on its way from the backward pass to the update.

    Attributes:
        growth: The most weights that can grow.
        passes: Backward passes since the gradient was zero.
        under_way: Sum over the uses of the layer in the present backward pass.
        coming: What the present backward pass is about to add.
        direct: Sum of the gradients of values that came past the layer, before any that did not.
        held: Sum over the backward passes of the step, if it is held.
        excerpt: What was kept of the gradient of the step.
        left: What `.grad` of the values was after the last backward pass.
        lost: Whether another backward pass came after the excerpt had been made.
        hooked: Whether hooks of the user's have changed a gradient otherwise than by a factor.
    """

    def __init__(self) -> None:
        self.growth = 0
        self.passes = 0
        self.forget()

    def forget(self) -> None:
        """Forget all gradients."""
        self.under_way: Tensor | None = None
        self.coming: Coming | None = None
        self.direct: Tensor | None = None
        self.held: Tensor | None = None
        self.excerpt: Excerpt | None = None
        self.left: Tensor | None = None
        self.lost = False
        self.hooked = False


class ExcerptedGradients(Gradients):
    """Excerpts of the dense gradients.

    Args:
        layers: The layers that have a gradient, by the name of their weight.
        observations: What is known of it, if it is needed.
    """

    def __init__(
        self, layers: Mapping[str, SparseLayer], observations: Mapping[str, Observation]
    ) -> None:
        self.trained = frozenset(layers)
        self._layers = layers
        self._observations = observations

    def finite(self) -> bool:
        """Return whether all were finite, and none was lost."""
        found = self._observations.values()
        return not any(o.lost or (o.excerpt and not o.excerpt.finite) for o in found)

    def dense(self, name: str) -> Tensor | None:
        """Return the gradient of a weight, zero at positions that cannot grow."""
        observation = self._observations.get(name)
        if observation is None:
            return None
        layer = self._layers[name]
        if observation.excerpt is None:  # the gradient of the values is zero
            return torch.zeros(layer.dense_shape, dtype=layer.values.dtype)
        return observation.excerpt.dense(layer.dense_shape)


class CompressedStorage(Storage):
    """The non-zeros are all that is stored.

    In steps whose dense gradients are needed, each layer computes its own in the backward pass, and
    keeps an excerpt: the gradient of the non-zeros, and those of the positions that could grow,
    which are no more than the update can drop. The rest is let go before the next layer.

    Over several micro-batches, though, growth is by the sum of their gradients, of which no excerpt
    can be made before the last. As soon as a step was seen to have had several backward passes
    since its gradients were zero, the dense gradients of later observed steps are held until the
    optimizer steps. If that comes as a surprise in a step whose excerpts are made already, nothing
    is dropped or grown after it.

    Under `DistributedDataParallel` the dense gradient of a layer is reduced over the workers when
    its excerpt is made.

    Args:
        dense: The weights, still dense.
        optimizer: The optimizer.
        pattern: The pattern of the masks.
    """

    name: ClassVar[str] = "compressed"

    def __init__(
        self,
        dense: Sequence[MaskedTarget],
        optimizer: Optimizer,
        pattern: Pattern,
    ) -> None:
        self._targets: tuple[CompressedTarget, ...] = ()
        self._dense = tuple(dense)
        self._optimizer = optimizer
        self._pattern = pattern
        self._observed = False
        self._observations: list[Observation] = []
        # Until a whole step has been seen, it may have any number of backward passes.
        self._accumulates = True
        self._first = True
        self._handles: list[RemovableHandle] = []

    @property
    def targets(self) -> tuple[CompressedTarget, ...]:
        """The weights, once they are compressed."""
        return self._targets

    def begin(self, masks: Sequence[Tensor]) -> None:
        """Make the layers sparse in place, and their weights the values."""
        new = []
        for target, mask in zip(self._dense, masks, strict=True):
            new.append(compress(target.module, mask, rows=self._rows(target.module)))
        for target, layer in zip(self._dense, new, strict=True):
            weight = target.weight
            convert_state(self._optimizer, weight, layer.gather)
            layer.adopt(weight)
            become(target.module, layer)
        chosen: dict[str, Tensor] = {}
        self._targets = tuple(
            CompressedTarget(t.name, t.nnz, t.module, self._optimizer, chosen) for t in self._dense
        )
        self._dense = ()
        self._observations = [Observation() for _ in self.targets]
        for i, target in enumerate(self.targets):
            values = target.layer.values
            hook = _weakly(CompressedStorage._on_gradient, self, i)
            self._handles.append(values.register_hook(hook))
            hook = _weakly(CompressedStorage._after_gradient, self, i)
            self._handles.append(values.register_post_accumulate_grad_hook(hook))
        LOGGER.warning(
            "%d weights are now parameters named `values`, rows of their non-zeros. Code that picks "
            "parameters by a name that ends in `weight`, or by `ndim`, for a penalty or a new "
            "optimizer, has to pick `values` too.",
            len(self.targets),
        )

    def before_backward(self, growth: Sequence[int | None] | None) -> None:
        """Let the layers compute their dense gradients in the next step, if these are needed."""
        self._observed = growth is not None
        for i, (target, observation) in enumerate(
            zip(self.targets, self._observations, strict=True)
        ):
            observation.forget()
            bound = growth[i] if growth is not None else None
            assert growth is None or bound is not None
            observation.growth = bound or 0
            target.layer.observer = (
                _weakly(CompressedStorage._on_dense_gradient, self, i) if self._observed else None
            )

    def collect_grads(self, scale: Tensor | None) -> Gradients:
        """Return the excerpts of the dense gradients, if these are needed.

        They are as the backward pass computed them: scaled, and not clipped. That changes no
        comparison within a layer.
        """
        del scale
        if self._first:
            self._first = False
            self._accumulates = any(o.passes > 1 for o in self._observations)
        trained = {t.name: t.layer for t in self.targets if t.layer.values.grad is not None}
        observed = {}
        for i, (target, observation) in enumerate(
            zip(self.targets, self._observations, strict=True)
        ):
            target.layer.observer = None
            if self._observed and target.name in trained:
                coming = observation.coming
                if observation.excerpt is None and observation.held is None and coming is not None:
                    observation.held = coming.dense  # and the gradient was set by hand
                if observation.held is not None:
                    observation.excerpt = self._excerpt(i, observation.held)
                    observation.held = None
                observed[target.name] = observation
        unknown = [name for name in observed if _is_unknown(trained[name], observed[name])]
        warn_of_unknown(unknown)
        for name in unknown:
            del trained[name], observed[name]
        return ExcerptedGradients(trained, observed)

    def expose_trainable(self) -> None:
        """Do nothing: what the optimizer trains is in place."""

    def apply_masks(self, choose_masks: Callable[[], None] | None) -> None:
        """Let `choose_masks` change the masks; what is stored needs no masking."""
        if choose_masks is not None:
            choose_masks()
            for target in self._targets:
                target.commit()

    def remove(self) -> None:
        """Leave layers and optimizer as they are from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for target in self.targets:
            target.layer.observer = None

    @property
    def nbytes(self) -> int:
        """Bytes of the gradients held between a backward pass and the optimizer's step."""
        held = [t for o in self._observations for t in (o.under_way, o.held)]
        for observation in self._observations:
            if observation.coming is not None:
                held.append(observation.coming.dense)
            if observation.excerpt is not None:
                held += [observation.excerpt.positions, observation.excerpt.gradient]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def _rows(self, module: nn.Module) -> int:
        """Return how many outputs share an entry of the index."""
        shape = module.get_parameter("weight").shape
        fan_in_fan_out = is_fan_in_fan_out(module)
        outputs = shape[1] if fan_in_fan_out else shape[0] // getattr(module, "groups", 1)
        height = self._pattern.block[1 if fan_in_fan_out else 0]
        return 1 if height % BLOCK_ROWS or outputs % BLOCK_ROWS else BLOCK_ROWS

    @torch.no_grad()
    def _on_dense_gradient(self, i: int, dense: Tensor) -> None:
        """Take the dense gradient of one use of a layer."""
        observation = self._observations[i]
        before = observation.under_way
        observation.under_way = dense if before is None else before.add_(dense)

    @torch.no_grad()
    def _on_gradient(self, i: int, grad: Tensor) -> None:
        """Follow a backward pass, just before the gradient of the values is accumulated, if it is."""
        observation, layer = self._observations[i], self.targets[i].layer
        values = layer.values
        dense, observation.under_way = observation.under_way, None
        if values.grad is None or not bool(values.grad.any()):
            observation.forget()
            observation.passes = 0
        if not self._observed:
            return
        if dense is not None:
            (change,) = changes([(layer.gather(dense), grad)])
            if change.plain and not change.zero:  # the layer ran with a multiple of its weights
                dense = change.factor * dense
            # Of live weights, also what came past the layer, such as that of a penalty on parameters.
            dense = torch.where(layer.mask(), layer.scatter(grad), dense)
        before = None
        if len(values._backward_hooks or ()) > 1:
            before = torch.zeros_like(grad) if values.grad is None else values.grad.clone()
        observation.coming = Coming(grad, dense, before)

    @torch.no_grad()
    def _after_gradient(self, i: int, values: Tensor) -> None:
        """Take what a backward pass has added to `.grad`."""
        observation = self._observations[i]
        observation.passes += 1
        self._accumulates |= observation.passes > 1
        coming, observation.coming = observation.coming, None
        if not self._observed or coming is None or observation.lost:
            return
        observation.left = values.grad
        if coming.before is not None and values.grad is not None:
            (change,) = changes([(coming.values, values.grad - coming.before)])
            observation.hooked |= not change.plain
        if coming.dense is None:
            self._add_direct(i, coming.values)
        elif observation.excerpt is not None:
            observation.lost, observation.excerpt = True, None
            warnings.warn(
                "A second backward pass came in a step of which only one was expected, since all "
                "steps before had one: nothing is dropped or grown after this step.",
                NoEffectWarning,
                stacklevel=2,
            )
        else:
            dense = coming.dense
            for more in (observation.held, observation.direct):
                if more is not None:
                    dense += more
            observation.held = observation.direct = None
            if self._accumulates:
                observation.held = dense
            else:
                observation.excerpt = self._excerpt(i, dense)

    def _add_direct(self, i: int, grad: Tensor) -> None:
        """Add a gradient of the values that came past the layer."""
        observation, layer = self._observations[i], self.targets[i].layer
        dense = layer.scatter(grad)
        if observation.excerpt is not None:
            observation.excerpt = observation.excerpt.plus(dense)
        elif observation.held is not None:
            observation.held += dense
        else:
            before = observation.direct
            observation.direct = dense if before is None else before + dense

    def _excerpt(self, i: int, dense: Tensor) -> Excerpt:
        """Reduce a dense gradient to what an update can ask for."""
        layer = self.targets[i].layer
        dense = averaged(dense)
        if not bool(dense.isfinite().all()):
            nothing = dense.new_zeros(0)
            return Excerpt(nothing, nothing, finite=False)
        mask = layer.mask()
        candidates = self._pattern.candidates(mask, dense.abs(), self._observations[i].growth)
        positions = _positions(mask | candidates)
        return Excerpt(positions, dense.flatten()[positions.long()], finite=True)


def _is_unknown(layer: SparseLayer, observation: Observation) -> bool:
    """Tell whether the gradient of the values was set to another than that of the backward pass."""
    grad, excerpt = layer.values.grad, observation.excerpt
    assert grad is not None
    if observation.lost or (excerpt is not None and not excerpt.finite):
        return False
    if observation.hooked:
        return True
    if excerpt is None:
        return bool(grad.any())
    if grad is observation.left or workers() > 1:
        return False
    (change,) = changes([(layer.gather(excerpt.dense(layer.dense_shape)), grad)])
    return not change.plain


def _positions(mask: Tensor) -> Tensor:
    """Return the flat positions of a mask, as small integers as will do."""
    positions = mask.flatten().nonzero().flatten()
    return positions.to(torch.int32) if mask.numel() < 2**31 else positions


def _weakly(method: Callable[..., None], storage: CompressedStorage, i: int) -> Callable[..., None]:
    """Return `method` of a storage, which the function does not keep alive.

    Layers and autograd hold on to such functions, and the storage to the layers; the garbage
    collector does not see through the hooks of autograd.
    """
    reference = weakref.ref(storage)

    def call(tensor: Tensor) -> None:
        alive = reference()
        if alive is not None:
            method(alive, i, tensor)

    return call
