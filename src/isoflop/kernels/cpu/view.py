"""The weight that a sparse layer does not store, for code that reads or changes `layer.weight`."""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from isoflop.errors import KernelError

Part = Callable[[Tensor], Any]


def _whole(dense: Tensor) -> Tensor:
    return dense


class DenseView(Tensor):
    """The dense form of a row of non-zeros, made where its elements are used and not before.

    Shape, type and device are known at no cost. Any other operation gets a dense tensor that is made
    for it, through which gradients reach the non-zeros. An operation in place, on the view or on a
    part of it, changes the non-zeros; zeros stay zeros.

    Args:
        layer: The `SparseLayer` that has the index of the non-zeros.
        values: Returns the non-zeros of a layer, (nnz,).
        dense: Returns the dense tensor of a layer, with what autograd needs.
        part: Returns of the dense tensor what is looked at.
    """

    _layer: Any
    _values: Callable[[Any], Tensor]
    _dense: Callable[[Any], Tensor]
    _part: Part

    @staticmethod
    def __new__(
        cls,
        layer: Any,
        values: Callable[[Any], Tensor],
        dense: Callable[[Any], Tensor],
        part: Part = _whole,
    ) -> "DenseView":
        """Make a view; see the class."""
        own = values(layer)
        if own.requires_grad and torch.is_grad_enabled():
            # For what takes no notice of `__torch_function__`, such as an `autograd.Function`.
            view: Any = _Shown.apply(own, layer, part)
        else:
            view = _empty(layer, own, part)
        view._layer, view._values, view._dense, view._part = layer, values, dense, part
        return view

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch that has a view among its arguments."""
        kwargs = dict(kwargs or {})
        if not args and kwargs and isinstance(next(iter(kwargs.values())), DenseView):
            # `nn.init` passes everything by keyword.
            args = (kwargs.pop(next(iter(kwargs))),)
        view, name = args[0] if args else None, getattr(func, "__name__", "")
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if isinstance(view, DenseView) and func in _SPECIAL:
            return _SPECIAL[func](view, *args[1:], **kwargs)
        if _IN_PLACE.fullmatch(name):
            return _change(func, args, kwargs)
        if isinstance(view, DenseView) and (name in _PARTS or func in _PART_PROPERTIES):
            return view._look(func, args[1:], kwargs)
        out = kwargs.get("out")
        if isinstance(out, DenseView):
            return out.copy_(func(*_made(args), **_made({**kwargs, "out": None})))
        return func(*_made(args), **_made(kwargs))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator that was reached without `__torch_function__`."""
        return func(*_made(args), **_made(dict(kwargs or {})))

    def __deepcopy__(self, memo: dict[int, Any]) -> "DenseView":
        layer = copy.deepcopy(self._layer, memo)
        return DenseView(layer, self._values, self._dense, self._part)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.made().detach().__reduce_ex__(protocol)

    def __hash__(self) -> int:
        return id(self)

    def made(self) -> Tensor:
        """Return the dense tensor."""
        # Contiguous, as the dense layer has it.
        return self._part(self._dense(self._layer).contiguous())

    def _own(self) -> Tensor:
        return self._values(self._layer)

    def _look(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return a view of a part, or of several, where PyTorch would; else a dense tensor."""
        like = self._part(_shape_of(self._layer, self._own()))
        try:
            parts = func(like, *args, **kwargs)
        except Exception:  # which the dense tensor raises with its own message
            return func(self.made(), *_made(args), **_made(kwargs))
        if parts is like:
            return self
        if isinstance(parts, (tuple, list)):
            return tuple(
                self._view(lambda dense, i=i: func(self._part(dense), *args, **kwargs)[i])
                for i in range(len(parts))
            )
        if not isinstance(parts, Tensor) or not parts._is_view():
            return func(self.made(), *_made(args), **_made(kwargs))
        return self._view(lambda dense: func(self._part(dense), *args, **kwargs))

    def _view(self, part: Part) -> "DenseView":
        return DenseView(self._layer, self._values, self._dense, part)

    def _require_grad(self, requires_grad: bool = True) -> "DenseView":
        values = self._own()
        if values is self._own():
            values.requires_grad_(requires_grad)
        elif requires_grad:  # of `detach()` or `data`, which `nn.Parameter(layer.weight)` asks for
            raise KernelError(
                "A parameter cannot share the weight of a sparse layer. Pass a copy, "
                "`layer.weight.detach().clone()`."
            )
        return self

    def _detached(self) -> "DenseView":
        def values(layer: Any, own: Any = self._values) -> Tensor:
            return own(layer).detach()

        return DenseView(
            self._layer, values, lambda layer: layer.scatter(values(layer)), self._part
        )

    def _gradient(self) -> "DenseView | None":
        if self._part is not _whole or self._own().grad is None:
            return None

        def grad(layer: Any, own: Any = self._values) -> Any:
            return own(layer).grad

        return DenseView(self._layer, grad, lambda layer: layer.scatter(grad(layer)))

    def _set_gradient(self, grad: Tensor | None) -> None:
        self._own().grad = None if grad is None else self._layer.gather(_made(grad).detach())

    def _set_data(self, data: Tensor) -> None:
        if data.shape != self.shape:
            raise KernelError(
                f"The weight of this sparse layer has the shape {tuple(self.shape)}, and cannot "
                f"become a tensor of shape {tuple(data.shape)}."
            )
        self._detached().copy_(data)

    def _refuse_hook(self, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise KernelError(
            "The weight of a sparse layer is made anew at each use, so hooks on it would never be "
            "called. Put the hook on `layer.values`."
        )


class _Shown(torch.autograd.Function):
    """Leads the gradient of a view to the values, and to the observer of the layer."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: Any, part: Part) -> Tensor:
        ctx.layer, ctx.part = layer, part
        return _empty(layer, values, part)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (gradient,) = grad_outputs
        layer, again = ctx.layer, torch.is_grad_enabled()
        with torch.enable_grad():
            whole = gradient.new_zeros(layer.dense_shape).requires_grad_()
            (dense,) = torch.autograd.grad(
                ctx.part(whole), whole, gradient, create_graph=again, materialize_grads=True
            )
        if layer.observer is not None:
            layer.observer(dense.detach())
        return layer.gather(dense), None, None


def _empty(layer: Any, values: Tensor, part: Part) -> Any:
    """Return a view that knows its shape, type and device alone."""
    like = part(_shape_of(layer, values))
    make: Any = Tensor._make_wrapper_subclass  # pyright: ignore[reportAttributeAccessIssue]
    return make(
        DenseView, like.shape, strides=like.stride(), dtype=values.dtype, device=values.device
    )


def _made(value: Any) -> Any:
    """Replace views by dense tensors."""
    return tree_map_only(DenseView, DenseView.made, value)


def _change(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Change non-zeros as an operation in place changes dense tensors, one or a list of them."""
    first, *others = args
    initialises = getattr(func, "__module__", None) == torch.nn.init.__name__
    changed: list[tuple[DenseView, Tensor]] = []

    def dense(view: DenseView) -> Tensor:
        values = view._own()
        if values.requires_grad and torch.is_grad_enabled() and not initialises:
            raise KernelError(
                f"The weight of a sparse layer is trained, and {func.__name__} would change it in "
                "place. Call it under `torch.no_grad()`."
            )
        changed.append((view, view._layer.scatter(values.detach()).contiguous()))
        return view._part(changed[-1][1])

    with torch.no_grad():
        made = _made(tuple(others)), _made(kwargs)
    plain = tree_map_only(DenseView, dense, first)
    with torch.no_grad():
        result = func(plain, *made[0], **made[1])
        for view, whole in changed:
            view._own().copy_(view._layer.gather(whole))
    return first if result is plain else result


def _shape_of(layer: Any, values: Tensor) -> Tensor:
    return torch.empty(layer.dense_shape, dtype=values.dtype, device="meta")


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


def _setter(name: str) -> Any:
    return getattr(Tensor, name).__set__


_METADATA = {
    *map(_getter, ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_meta", "is_cpu")),
    *map(_getter, ("is_sparse", "is_quantized", "is_nested", "itemsize", "nbytes")),
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.nelement,
    Tensor.stride,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.element_size,
    Tensor.get_device,
    Tensor.storage_offset,
    Tensor.__len__,
    torch.numel,
    torch.is_floating_point,
    torch.is_complex,
}

_SPECIAL: dict[Any, Callable[..., Any]] = {
    _getter("requires_grad"): lambda view: view._own().requires_grad,
    _setter("requires_grad"): DenseView._require_grad,
    Tensor.requires_grad_: DenseView._require_grad,
    _getter("is_leaf"): lambda view: view._own().is_leaf,
    _getter("grad_fn"): lambda view: view._own().grad_fn,
    _getter("_version"): lambda view: view._own()._version,
    _getter("grad"): DenseView._gradient,
    _setter("grad"): DenseView._set_gradient,
    _getter("data"): DenseView._detached,
    _setter("data"): DenseView._set_data,
    Tensor.detach: DenseView._detached,
    torch.detach: DenseView._detached,
    Tensor.data_ptr: lambda view: view._own().data_ptr(),
    Tensor.untyped_storage: lambda view: view._own().untyped_storage(),
    Tensor.register_hook: DenseView._refuse_hook,
    Tensor.register_post_accumulate_grad_hook: DenseView._refuse_hook,
    Tensor.retain_grad: DenseView._refuse_hook,
}

_IN_PLACE = re.compile(r".*[^_]_|__setitem__|__i(add|sub|mul|truediv|floordiv|mod|pow)__")
"""Names of the operations that change their first argument."""

_PARTS = frozenset(
    [
        *("t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "adjoint"),
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel"),
        *("squeeze", "unsqueeze", "expand", "expand_as", "narrow", "select", "diagonal", "unfold"),
        *("as_strided", "chunk", "split", "tensor_split", "hsplit", "vsplit", "unbind"),
        *("__getitem__", "contiguous", "to", "type_as", "float", "double", "half", "bfloat16"),
    ]
)
"""Names of the operations whose result may share the elements of their first argument."""

_PART_PROPERTIES = set(map(_getter, ("T", "mT", "H", "mH")))
