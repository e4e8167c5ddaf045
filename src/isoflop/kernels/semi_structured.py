"""2:4 sparsity on GPUs, by PyTorch's semi-structured products.

PyTorch packs a matrix that has two non-zeros in every four consecutive weights of a row: for
cuSPARSELt, or for CUTLASS, which it has for GPUs of compute capability 8.x only. The transpose is a
matrix of its own, so training takes masks that are 2:4 both ways (`pattern="2:4-T"`): the forward
pass multiplies by the packed weight, the gradient of the input by its packed transpose. The gradient
of the weight is a dense product.
"""

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)

from isoflop.errors import KernelError
from isoflop.masks import get_mask
from isoflop.surgery import is_fan_in_fan_out

Packing = type[SparseSemiStructuredTensor]
"""The class of packed matrices: cuSPARSELt's or CUTLASS's."""

DTYPES = (torch.bfloat16, torch.float16)


@functools.cache
def packing(device: torch.device) -> Packing | None:
    """Return the packing that works on a device, tried by a product, or None if none does."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    for kind in (SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS):
        if _works(kind, device):
            return kind
    return None


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype in which a layer with that weight computes: autocast's, or its own."""
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def is_two_four(mask: Tensor) -> bool:
    """Return whether every four consecutive positions of each row have exactly two non-zeros.

    Args:
        mask: Boolean, (rows, columns).
    """
    if mask.shape[1] % 4:
        return False
    return bool((mask.unflatten(1, (-1, 4)).sum(2) == 2).all())


def why_not(layer: nn.Module, kind: Packing, *, training: bool) -> str | None:
    """Return why a masked layer cannot run on 2:4 products, or None if it can."""
    # Subclasses may compute something else.
    if type(layer).forward is not nn.Linear.forward and not is_fan_in_fan_out(layer):
        return "is not a linear layer"
    weight, mask = layer.get_parameter("weight"), get_mask(layer)
    dtype = compute_dtype(weight)
    if dtype not in DTYPES:
        return f"computes in {dtype}: use model.bfloat16(), or call accelerate under torch.autocast"
    assert mask is not None
    if is_fan_in_fan_out(layer):
        weight, mask = weight.t(), mask.t()
    if not is_two_four(mask):
        return "has a mask that is not 2:4 along its inputs: use pattern='2:4-T'"
    if training and not is_two_four(mask.t()):
        return "has a mask that is not 2:4 both ways: use pattern='2:4-T'"
    limits = kind._DTYPE_SHAPE_CONSTRAINTS[dtype]
    rows, columns = limits.sparse_min_rows, limits.sparse_min_cols
    if training:
        rows = columns = max(rows, columns)
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return (
            f"has {weight.shape[0]} outputs and {weight.shape[1]} inputs, which are no multiples of "
            f"{rows} and {columns}: use multiple_of={max(rows, columns)} in the transform"
        )
    return None


class SemiStructuredLinear(nn.Module):
    """A linear layer for inference whose weight is packed.

    Save or copy the model before its layers become such ones: a packed weight is for one kind of
    GPU, and not every version of PyTorch can copy it.

    Attributes:
        weight: (out, in), packed.
        bias: (out,), or None.
    """

    weight: nn.Parameter
    bias: Tensor | None

    @classmethod
    def from_dense(cls, layer: nn.Module, kind: Packing) -> "SemiStructuredLinear":
        """Return the packed form of a layer in the dtype in which it computes now.

        Args:
            layer: An `nn.Linear`, or Hugging Face's Conv1D, whose zeros are 2:4; see `why_not`.
            kind: How to pack.
        """
        packed = cls()
        weight = layer.get_parameter("weight").detach()
        dtype = compute_dtype(weight)
        matrix = weight.t() if is_fan_in_fan_out(layer) else weight
        packed.weight = nn.Parameter(_pack(matrix.to(dtype), kind), requires_grad=False)
        bias = layer._parameters.get("bias")
        packed.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        return packed.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out), in the dtype of the weight."""
        out, inputs = self.weight.shape
        rows = x.reshape(-1, inputs).to(self.weight.dtype)
        return F.linear(rows, self.weight, self.bias).view(*x.shape[:-1], out)

    def extra_repr(self) -> str:
        """Return the sizes."""
        out, inputs = self.weight.shape
        return f"in_features={inputs}, out_features={out}, bias={self.bias is not None}"


class SemiStructuredTraining:
    """The `forward` of a masked linear layer in training on 2:4 products.

    The layer stays the module that it is, with its dense weight and its mask: `enable` puts this in
    front of the method of its class. The weight is packed anew in each pass. Where it cannot be, in
    another dtype or on another device, the layer computes as its class does.
    """

    def __init__(self, layer: nn.Module, kind: Packing) -> None:
        self._layer = layer
        self._kind = kind
        self._device = layer.get_parameter("weight").device.type
        self._checked: tuple[int, int] | None = None

    # Packed matrices in autograd functions are more than the compiler knows.
    @torch.compiler.disable
    def __call__(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        layer = self._layer
        weight = layer.get_parameter("weight")
        dtype = compute_dtype(weight)
        fake = isinstance(x, FakeTensor)  # such as those by which FLOPs are counted
        if fake or dtype not in DTYPES or x.device.type != self._device:
            return type(layer).forward(layer, x)
        self._check_mask()
        if is_fan_in_fan_out(layer):
            weight = weight.t()
        out, inputs = weight.shape
        y = _Product.apply(x.reshape(-1, inputs).to(dtype), weight.to(dtype), self._kind)
        bias = layer._parameters.get("bias")
        if bias is not None:
            y = y + bias.to(dtype)
        return y.view(*x.shape[:-1], out)

    def _check_mask(self) -> None:
        """Check the mask if it may have changed: packing drops what it has no place for."""
        mask = get_mask(self._layer)
        version = None if mask is None else (id(mask), mask._version)
        if mask is not None and version == self._checked:
            return
        if mask is None or not (is_two_four(mask) and is_two_four(mask.t())):
            raise KernelError(
                "The mask of a layer that runs on 2:4 products is no longer 2:4 both ways. Sparsify "
                "with pattern='2:4-T', and call isoflop.accelerate after that."
            )
        self._checked = version


def enable(layer: nn.Module, kind: Packing) -> None:
    """Let a masked linear layer train on 2:4 products; see `why_not`."""
    layer.__dict__["forward"] = SemiStructuredTraining(layer, kind)


def disable(layer: nn.Module) -> None:
    """Let a layer compute as its class does."""
    if isinstance(layer.__dict__.get("forward"), SemiStructuredTraining):
        del layer.__dict__["forward"]


class _Product(torch.autograd.Function):
    """x @ weight.t(), of (rows, in) and (out, in), where weight is 2:4 both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kind: Packing) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kind = kind
        return F.linear(x, _pack(weight, kind))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,) = grad_outputs
        x, weight = ctx.saved_tensors
        dx = (
            F.linear(dy.contiguous(), _pack(weight.t(), ctx.kind))
            if ctx.needs_input_grad[0]
            else None
        )
        # With zeros included: methods that grow weights want the gradient everywhere.
        dw = dy.t() @ x if ctx.needs_input_grad[1] else None
        return dx, dw, None


def _pack(matrix: Tensor, kind: Packing) -> SparseSemiStructuredTensor:
    return kind.from_dense(matrix.detach().contiguous())


def _works(kind: Packing, device: torch.device) -> bool:
    """Return whether a product by a packed identity gives back what is multiplied."""
    x = torch.randn(64, 64, device=device).to(torch.bfloat16)
    try:
        with warnings.catch_warnings():
            # PyTorch says once that its interface may change.
            warnings.filterwarnings("ignore", ".*prototype stage", UserWarning)
            y = F.linear(x, _pack(torch.eye(64, dtype=x.dtype, device=device), kind))
        return torch.equal(x, y)
    except RuntimeError:  # not built, or not for this GPU
        return False
