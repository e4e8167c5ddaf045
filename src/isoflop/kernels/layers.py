"""Layers that store the non-zeros of their weight only."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoflop.errors import KernelError
from isoflop.kernels.dense import dense_conv2d, dense_linear
from isoflop.kernels.functional import sparse_conv2d, sparse_linear
from isoflop.kernels.index import SparseIndex, build_index
from isoflop.kernels.layout import from_batch_innermost, to_batch_innermost
from isoflop.surgery import is_flipped

_INDEX = ("offsets", "starts", "t_entries", "t_starts")


class SparseLayer(nn.Module):
    """A layer whose weight is a parameter `values`, of length nnz, and an index.

    The index is a set of buffers, which travel in the state dict. Loading a state dict with another
    number of non-zeros, or with other positions, is allowed.

    Attributes:
        values: (nnz,). The non-zeros, in the order of `index`.
        bias: (out,), or None.
        flipped: Whether the dense weight is stored (in, out), as in Hugging Face's Conv1D.
        activation: What is applied to the output, a name in `isoflop.kernels.ACTIVATIONS`.
        backend: ``"sparse"`` computes on the non-zeros; ``"dense"`` makes the dense weight for the
            time of each pass, which is faster where few weights are zero.
    """

    values: nn.Parameter
    bias: Any
    offsets: Tensor
    starts: Tensor
    t_entries: Tensor
    t_starts: Tensor
    tiling: Tensor

    def __init__(self, weight: Tensor, mask: Tensor, *, groups: int = 1, rows: int = 1) -> None:
        super().__init__()
        out, per_group, *kernel = weight.shape
        kh, kw = kernel or (1, 1)
        self._shape = (out, per_group, kh, kw)
        self._groups = groups
        self.flipped = False
        self.activation = "none"
        self.backend: Literal["sparse", "dense"] = "sparse"
        positions = mask.flatten().nonzero().flatten()
        index, order = build_index(positions, self._shape, groups=groups, rows=rows)
        self.values = nn.Parameter(weight.detach().flatten()[positions[order]].clone())
        self._set_index(index)

    @property
    def index(self) -> SparseIndex:
        """The positions of the values."""
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

    def dense_weight(self) -> Tensor:
        """Return the weight with its zeros, in the shape that the dense layer stores."""
        return self._unpacked(self.values.detach())

    def mask(self) -> Tensor:
        """Return the boolean mask of the non-zeros, in the shape of the dense weight."""
        return self._unpacked(torch.ones_like(self.values, dtype=torch.bool))

    def positions(self) -> Tensor:
        """Return the flat positions of the values in (out, in / groups, kh, kw)."""
        return self.index.positions()

    @torch.no_grad()
    def rewire(self, index: SparseIndex, values: Tensor) -> None:
        """Set other positions and values; the parameter stays the same object.

        Args:
            index: The new positions.
            values: (nnz,), in the order of `index`.
        """
        if (index.shape, index.groups, index.nnz) != (self._shape, self._groups, len(values)):
            raise KernelError(
                f"An index of shape {index.shape} with {index.nnz} non-zeros does not fit a layer of "
                f"shape {self._shape} and {len(values)} values."
            )
        if len(values) == len(self.values):
            self.values.copy_(values)
        else:
            self.values.data = values.detach().to(self.values.dtype).clone()
            self.values.grad = None
        self._set_index(index)

    def to_dense(self) -> nn.Module:
        """Return the dense layer with the same weight, zeros included."""
        raise NotImplementedError

    def _dense_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _unpacked(self, values: Tensor) -> Tensor:
        dense = self.index.to_dense(values).view(self._dense_shape())
        return dense.t() if self.flipped else dense

    def _set_index(self, index: SparseIndex) -> None:
        for name in _INDEX:
            self.register_buffer(name, getattr(index, name))
        self._set_tiling((index.rows, index.block_in, index.block_out))

    def _set_tiling(self, tiling: tuple[int, int, int]) -> None:
        self._tiling = tiling
        self.register_buffer("tiling", torch.tensor(tiling, dtype=torch.int32))

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The numbers of entries may differ from those of the layer as it is.
        for name in ("values", *_INDEX):
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(saved, Tensor) and saved.shape != own.shape and saved.ndim == 1:
                own.data = own.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if all(prefix + name in state_dict for name in (*_INDEX, "tiling")):
            rows, block_in, block_out = self.tiling.tolist()
            self._tiling = (rows, block_in, block_out)
            self.index.check()
            if self.index.nnz != len(self.values):
                raise KernelError(
                    f"The checkpoint has {len(self.values)} values and {self.index.nnz} positions "
                    f"for {prefix.rstrip('.')!r}."
                )


class SparseLinear(SparseLayer):
    """A linear layer that stores and computes its non-zeros only."""

    @classmethod
    def from_dense(cls, layer: nn.Module, mask: Tensor, *, rows: int = 1) -> "SparseLinear":
        """Return the sparse form of `layer`; weights off `mask` are left out.

        Args:
            layer: An `nn.Linear`, or Hugging Face's Conv1D.
            mask: Boolean, shaped like the weight.
            rows: 4 if the non-zeros come in blocks of four consecutive outputs, else 1.
        """
        flipped = is_flipped(layer)
        weight = layer.get_parameter("weight")
        if flipped:
            weight, mask = weight.t(), mask.t()
        sparse = cls(weight, mask, rows=rows)
        sparse.flipped = flipped
        sparse.bias = getattr(layer, "bias", None)
        return sparse.train(layer.training)

    @property
    def in_features(self) -> int:
        """Size of each input."""
        return self._shape[1]

    @property
    def out_features(self) -> int:
        """Size of each output."""
        return self._shape[0]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (…, in) to (…, out); a residual, (…, out), is added before the activation."""
        linear = sparse_linear if self.backend == "sparse" else dense_linear
        return linear(
            x,
            self.values,
            self.index,
            self.bias,
            residual=residual,
            activation=self.activation,
        )

    def to_dense(self) -> nn.Linear:
        """Return the dense layer with the same weight, zeros included."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False)
        layer.weight = nn.Parameter(self.index.to_dense(self.values.detach())[:, :, 0, 0])
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return sizes and non-zeros."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"bias={self.bias is not None}"
        )

    def _dense_shape(self) -> tuple[int, ...]:
        return self._shape[:2]


class SparseConv2d(SparseLayer):
    """A convolution that stores and computes its non-zeros only.

    Attributes:
        batch_innermost: Whether the dense backend returns that layout, as the sparse one does.
    """

    batch_innermost: bool = False
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, mask: Tensor, *, rows: int = 1) -> "SparseConv2d":
        """Return the sparse form of `layer`; weights off `mask` are left out.

        Args:
            layer: The convolution; its padding must be zeros.
            mask: Boolean, shaped like the weight.
            rows: 4 if the non-zeros come in blocks of four consecutive output channels, else 1.

        Raises:
            KernelError: The padding is not by zeros, or not the same on both sides.
        """
        if layer.padding_mode != "zeros":
            raise KernelError(
                f"A sparse convolution pads with zeros, not {layer.padding_mode!r}. Keep the layer "
                "dense."
            )
        sparse = cls(layer.weight, mask, groups=layer.groups, rows=rows)
        sparse.stride = _pair(layer.stride)
        sparse.dilation = _pair(layer.dilation)
        sparse.padding = _padding(layer)
        sparse.bias = layer.bias
        return sparse.train(layer.training)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self._shape[1] * self._groups

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self._shape[0]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return self._shape[2:]

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self._groups

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W'); a residual is added before the activation."""
        dense = self.backend == "dense"
        conv2d = dense_conv2d if dense else sparse_conv2d
        y = conv2d(
            from_batch_innermost(x) if dense else x,
            self.values,
            self.index,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            residual=residual,
            activation=self.activation,
        )
        return to_batch_innermost(y) if dense and self.batch_innermost else y

    def to_dense(self) -> nn.Conv2d:
        """Return the dense layer with the same weight, zeros included."""
        layer = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=False,
        )
        layer.weight = nn.Parameter(self.index.to_dense(self.values.detach()))
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return sizes and non-zeros."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, nnz={self.nnz}, bias={self.bias is not None}"
        )

    def _dense_shape(self) -> tuple[int, ...]:
        return self._shape


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(size % 2 for size in total):
            raise KernelError(
                f"Padding 'same' of a kernel {tuple(layer.kernel_size)} is not the same on both "
                "sides. Keep the layer dense."
            )
        return total[0] // 2, total[1] // 2
    assert not isinstance(layer.padding, str)
    return _pair(layer.padding)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    first, second = value
    return first, second
