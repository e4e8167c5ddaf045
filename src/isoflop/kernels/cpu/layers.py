"""Base of the layers that store the non-zeros of their weight only."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from isoflop.errors import KernelError
from isoflop.kernels.cpu.index import SparseIndex, build_index
from isoflop.kernels.cpu.library import is_transformed, is_wrapped
from isoflop.kernels.cpu.observing import Probe, observed
from isoflop.kernels.cpu.view import DenseView

_INDEX = ("offsets", "starts", "t_entries", "t_starts")
_PLAIN = (
    *("_shape", "_groups", "_tiling", "fan_in_fan_out", "activation", "backend", "observer"),
    *("batch_innermost", "_signature", *_INDEX),
)


class SparseLayer(nn.Module):
    """A layer whose weight is a parameter `values`, of length nnz, and an index.

    The index travels in the state dict, but its tensors are no buffers: what averages or copies the
    buffers of two models one by one would destroy it. Loading a state dict with another number of
    non-zeros, or with other positions, is allowed. So that values and index stay together, a buffer
    `signature` goes where the values go: if they are averaged with those of another index, it is no
    longer that of the layer's own, and whatever uses the layer raises a `KernelError`.

    Attributes:
        values: (nnz,). The non-zeros, in the order of `index`.
        signature: (64,). That of the index: ones and minus ones.
        bias: (out,), or None.
        fan_in_fan_out: Whether the dense weight is stored (in, out), as in Hugging Face's Conv1D.
        activation: What is applied to the output, a name in `isoflop.kernels.ACTIVATIONS`.
        backend: What it computes with, a name in `isoflop.kernels.cpu.variants`: ``"sparse"``, on
            the non-zeros; ``"sparse_bfloat16"``, which rounds what it multiplies to bfloat16, where the
            processor has instructions for it; ``"dense"``, by PyTorch, which is faster where few weights
            are zero.
        observer: Called in each backward pass that computes the gradient of the values, once for each
            use of the layer, with the gradient of the dense weight, zeros included; None, as it mostly
            is, spares that gradient. Copies of the layer have no observer.
    """

    values: nn.Parameter
    bias: Any
    offsets: Tensor
    starts: Tensor
    t_entries: Tensor
    t_starts: Tensor
    signature: Tensor

    def __init__(self, weight: Tensor, mask: Tensor, *, groups: int = 1, rows: int = 1) -> None:
        # Past the classes of the dense layers, which would draw a weight.
        nn.Module.__init__(self)
        out, per_group, *kernel = weight.shape
        kh, kw = kernel or (1, 1)
        self._shape = (out, per_group, kh, kw)
        self._groups = groups
        self.fan_in_fan_out = False
        self.activation = "none"
        self.backend = "sparse"
        self.observer: Callable[[Tensor], None] | None = None
        self._tiling = (0, 0, 0)
        positions = mask.flatten().nonzero().flatten()
        index, order = build_index(positions, self._shape, groups=groups, rows=rows)
        values = weight.detach().flatten()[positions[order]]
        self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        self._set_index(index)

    @property
    def weight(self) -> Any:
        """The weight with its zeros, (out, …) as the dense layer stores it, for code that reads it.

        Shape, type and device cost nothing; elements are made at each use. Gradients reach the values.
        Changed in place, under `torch.no_grad()`, it changes the values alone: zeros stay zeros. It is
        no parameter; to put another in its place is refused.
        """
        if torch.compiler.is_compiling() or is_transformed(self.values):
            return self._live_weight()
        return DenseView(self, _values_of, _live_weight_of)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise KernelError(
                "The weight of a sparse layer cannot be replaced, as its zeros have to stay. Change it "
                "by `layer.weight.copy_(new)` under `torch.no_grad()`, or make the layer dense by "
                "`isoflop.densify`."
            )
        super().__setattr__(name, value)

    @property
    def index(self) -> SparseIndex:
        """The positions of the values.

        Raises:
            KernelError: They are not those of the values any more.
        """
        self._check_signature()
        rows, block_in, block_out = self._tiling
        return SparseIndex(
            shape=self._shape,
            groups=self._groups,
            rows=rows,
            block_in=block_in,
            block_out=block_out,
            offsets=self.offsets,
            starts=self.starts,
            t_entries=self.t_entries,
            t_starts=self.t_starts,
        )

    @property
    def nnz(self) -> int:
        """Number of non-zeros."""
        return len(self.values)

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape in which the dense layer stores its weight."""
        return self._matrix_shape()[::-1] if self.fan_in_fan_out else self._matrix_shape()

    def dense_weight(self) -> Tensor:
        """Return the weight with its zeros, in the shape that the dense layer stores."""
        return self.scatter(self.values.detach())

    def mask(self) -> Tensor:
        """Return the boolean mask of the non-zeros, in the shape of the dense weight."""
        return self.scatter(torch.ones_like(self.values, dtype=torch.bool))

    def positions(self) -> Tensor:
        """Return the flat positions of the values in (out, in / groups, kh, kw)."""
        return self.index.positions()

    def scatter(self, values: Tensor) -> Tensor:
        """Return the tensor of `dense_shape` with `values`, (nnz,), at the non-zeros, else zero."""
        dense = self.index.to_dense(values).view(self._matrix_shape())
        return dense.t() if self.fan_in_fan_out else dense

    def gather(self, dense: Tensor) -> Tensor:
        """Return what a tensor of `dense_shape` has at the non-zeros, in the order of the values."""
        return self._flat(dense)[self.positions()]

    @torch.no_grad()
    def adopt(self, parameter: nn.Parameter) -> None:
        """Make `parameter`, so far the weight of a dense layer, the parameter `values`.

        Whatever holds it, such as an optimizer, goes on with the values. Its gradient follows.
        """
        grad, parameter.grad = parameter.grad, None
        _assign(parameter, self.values.data)
        if grad is not None:
            parameter.grad = self.gather(grad)
        self.values = parameter

    @torch.no_grad()
    def drop_and_grow(self, mask: Tensor, alike: Iterable[Tensor] = ()) -> None:
        """Make the positions of `mask` the non-zeros; the parameter stays the same object.

        Values, and the gradient if there is one, stay at positions that were non-zeros before, and
        are zero at new ones.

        Args:
            mask: Boolean, of `dense_shape`.
            alike: Tensors of shape (nnz,) that change likewise in place, such as the optimizer's
                state of the values.

        Raises:
            KernelError: The mask does not come in whole blocks.
        """
        old = self.positions()
        positions = self._flat(mask).nonzero().flatten()
        index, order = build_index(
            positions,
            self._shape,
            groups=self._groups,
            rows=self._tiling[0],
            blocks=self._tiling[1:],
        )
        places = torch.full((index.numel,), -1, dtype=torch.int64)
        places[old] = torch.arange(len(old))
        source = places[positions[order]]
        new, source = source < 0, source.clamp(min=0)

        def moved(tensor: Tensor) -> Tensor:
            if not len(tensor):
                return tensor.new_zeros(len(source))
            return tensor[source].masked_fill_(new, 0)

        for tensor in alike:
            assert tensor.shape == self.values.shape
            _assign(tensor, moved(tensor))
        grad = self.values.grad
        if grad is None:
            _assign(self.values, moved(self.values))
        else:
            self.values.grad = None
            _assign(self.values, moved(self.values))
            _assign(grad, moved(grad))
            self.values.grad = grad
        self._set_index(index)

    def to_dense(self) -> nn.Module:
        """Return the dense layer with the same weight, zeros included."""
        raise NotImplementedError

    def forget(self) -> None:
        """Take away what only sparse layers have, before the layer becomes a dense one."""
        for name in (*_PLAIN, "bias"):
            self.__dict__.pop(name, None)

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return the gradient of the dense weight, in `dense_shape`, zeros included.

        Args:
            x: Input of the layer.
            dy: Gradient of its output.
        """
        raise NotImplementedError

    def input_gradient(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        """Return what the gradient of the input `x` would be with a dense `weight`.

        Args:
            x: Input of the layer, of which only shape and type are used.
            dy: Gradient of its output.
            weight: In `dense_shape`.
        """
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "observer": None}

    def _matrix_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _flat(self, dense: Tensor) -> Tensor:
        return (dense.t() if self.fan_in_fan_out else dense).flatten()

    def _live_weight(self) -> Tensor:
        """Return the dense weight, through which gradients reach the values, and the observer."""
        dense, probe = self.scatter(self.values), self._probe()
        return dense if probe is None else dense + probe

    def _probe(self) -> Tensor | None:
        """Return zeros by which the observer, if there is one, sees the gradient of the weight."""
        values = self.values
        if self.observer is None or not (values.requires_grad and torch.is_grad_enabled()):
            return None
        if not is_transformed(values):
            return Probe.apply(values, self)  # pyright: ignore[reportReturnType]
        if is_wrapped(values):
            return None  # whose gradient goes elsewhere than to `grad`
        with temporarily_clear_interpreter_stack():
            return Probe.apply(values, self)  # pyright: ignore[reportReturnType]

    def _observed(self, x: Tensor, y: Tensor) -> Tensor:
        return y if self.observer is None else observed(self, x, y)  # pyright: ignore[reportCallIssue]

    def _set_index(self, index: SparseIndex) -> None:
        for name in _INDEX:
            setattr(self, name, getattr(index, name))
        self._tiling = (index.rows, index.block_in, index.block_out)
        self._signature = index.signature()
        own = self._buffers.get("signature")
        if own is None:
            self.register_buffer("signature", self._signature.clone())
        else:  # in place: DDP, among others, holds on to buffers
            own.copy_(self._signature)

    def _check_signature(self) -> None:
        """Raise if the values were averaged with, or replaced by, those of another index."""
        own = self.signature
        if torch.compiler.is_compiling():
            return
        functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
        while functorch.is_functorch_wrapped_tensor(own):
            own = functorch.get_unwrapped(own)
        if type(own) is not Tensor or not own.is_cpu:
            return
        # Of models whose states were stacked, all must have the same positions.
        if any(not _agree(each, self._signature) for each in own.view(-1, len(self._signature))):
            raise KernelError(
                f"The values of this {type(self).__name__} do not belong to its positions: they were "
                "averaged with those of other positions, or copied from them. Call "
                "`isoflop.align_masks(averaged, model)` right before each update of an average, and "
                "copy models by `load_state_dict`."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLayer":
        super()._apply(fn, recurse)
        for name in _INDEX:
            own = getattr(self, name)
            moved = fn(own)
            # `Module.type` would cast integers too.
            setattr(self, name, moved if moved.dtype is own.dtype else own.to(moved.device))
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Copies, so that nobody changes the index through the state dict.
        for name in _INDEX:
            destination[prefix + name] = getattr(self, name).clone()
        # As bytes, since not all that sends or stores tensors knows 16-bit integers.
        destination[prefix + "offsets"] = destination[prefix + "offsets"].view(torch.uint8)
        destination[prefix + "tiling"] = torch.tensor(self._tiling, dtype=torch.int32)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        needed = ("values", *_INDEX, "tiling")
        missing = [prefix + name for name in needed if prefix + name not in state_dict]
        rest = {k: v for k, v in state_dict.items() if k.removeprefix(prefix) not in needed[1:]}
        if not missing:
            # Everything is checked before anything is changed.
            for name in ("values", "bias"):
                if prefix + name in state_dict:
                    self._check_saved(prefix + name, state_dict[prefix + name], local_metadata)
            index = self._saved_index(state_dict, prefix)
            if self.bias is not None and strict and prefix + "bias" not in state_dict:
                missing_keys.append(prefix + "bias")
                return
            saved = state_dict.get(prefix + "bias")
            if self.bias is not None and saved is not None and saved.shape != self.bias.shape:
                error_msgs.append(
                    f"size mismatch for {prefix}bias: copying a param with shape {saved.shape} from "
                    f"checkpoint, the shape in current model is {self.bias.shape}."
                )
                return
            if len(self.values) != index.nnz:
                _assign(self.values, self.values.data.new_empty(index.nnz))
            self._set_index(index)
        elif len(missing) < len(needed):
            raise KernelError(
                f"The state of {prefix.rstrip('.')!r} lacks {', '.join(missing)}: values mean nothing "
                "without their positions. Load all of it, or nothing."
            )
        elif strict:
            missing_keys += missing[1:]  # PyTorch adds the values
        rest[prefix + "signature"] = self._signature
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _check_saved(self, name: str, saved: Any, metadata: Mapping[str, Any]) -> None:
        """Raise unless a parameter of a state dict has values that the layer can take up.

        Raises:
            KernelError: It has none.
        """
        ordinary = isinstance(saved, Tensor) and saved.layout is torch.strided
        if not ordinary or not saved.is_floating_point():
            what = f"{saved.layout} of {saved.dtype}" if isinstance(saved, Tensor) else type(saved)
            raise KernelError(f"{name!r} in the state is no dense tensor of floats, but a {what}.")
        there = self.values.is_meta or metadata.get("assign_to_params_buffers", False)
        if saved.is_meta and not there:
            raise KernelError(f"{name!r} in the state is on the meta device and has no values.")

    def _saved_index(self, state_dict: Mapping[str, Any], prefix: str) -> SparseIndex:
        """Return the index in a state dict.

        Raises:
            KernelError: It is damaged, or not that of the values.
        """
        values = state_dict[prefix + "values"]
        index = None
        try:
            saved = {name: state_dict[prefix + name].detach().cpu() for name in _INDEX}
            offsets = saved.pop("offsets").clone()
            rows, block_in, block_out = state_dict[prefix + "tiling"].tolist()
            index = SparseIndex(
                shape=self._shape,
                groups=self._groups,
                rows=rows,
                block_in=block_in,
                block_out=block_out,
                offsets=offsets.view(torch.int16) if offsets.dtype is torch.uint8 else offsets,
                **{name: tensor.clone() for name, tensor in saved.items()},
            )
            index.check_once()
        except (AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise KernelError(
                f"The positions in the state of {prefix.rstrip('.')!r} are damaged, or those of a weight "
                f"of another shape than {self._shape}: {error}"
            ) from error
        signature = state_dict.get(prefix + "signature", index.signature())
        if not isinstance(signature, Tensor):
            raise KernelError(
                f"{prefix}signature in the state is no tensor, but a {type(signature)}."
            )
        if values.shape != (index.nnz,) or not _agree(signature, index.signature()):
            raise KernelError(
                f"The state of {prefix.rstrip('.')!r} has {values.numel()} values and {index.nnz} "
                "positions that do not belong together, as where states of different masks were "
                "averaged. Average models with `isoflop.align_masks(averaged, model)`."
            )
        device = self.offsets.device
        return index.to(state_dict[prefix + "values"].device if device.type == "meta" else device)


def _values_of(layer: SparseLayer) -> Tensor:
    return layer.values


def _live_weight_of(layer: SparseLayer) -> Tensor:
    return layer._live_weight()


def _agree(signature: Tensor, other: Tensor) -> bool:
    """Tell whether two signatures are one; averages of equal numbers may be off by rounding."""
    if signature.shape != other.shape:
        return False
    if signature.dtype is other.dtype and torch.equal(signature, other):
        return True
    rounding = 1e-5 if signature.dtype in (torch.float32, torch.float64) else 1e-2
    return bool((signature.float().cpu() - other).abs().max() < rounding)


def _assign(tensor: Tensor, value: Tensor) -> None:
    """Make `tensor` hold `value`, in place, even if that is of another length."""
    if tensor.shape == value.shape:
        tensor.copy_(value)
        return
    # An old graph that is still alive keeps the gradient accumulator of a parameter, which knows the
    # old length. A change of type, for a moment, makes PyTorch forget it.
    other = torch.float64 if tensor.dtype != torch.float64 else torch.float32
    tensor.data = torch.empty(0, dtype=other)
    tensor.data = value
