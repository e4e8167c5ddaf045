"""Linear layers that store and compute their non-zeros only."""

import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.cpu.library import is_transformed
from isoflop.kernels.cpu.variants import VARIANTS
from isoflop.kernels.fuse.dense import with_epilogue
from isoflop.surgery import is_fan_in_fan_out


class SparseLinear(SparseLayer, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A linear layer that stores and computes its non-zeros only."""

    in_features: int
    out_features: int

    @staticmethod
    def from_dense(layer: nn.Module, mask: Tensor, *, rows: int = 1) -> "SparseLinear":
        """Return the sparse form of `layer`; weights off `mask` are left out.

        Args:
            layer: An `nn.Linear`, or Hugging Face's Conv1D.
            mask: Boolean, shaped like the weight.
            rows: 4 if the non-zeros come in blocks of four consecutive outputs, else 1.
        """
        fan_in_fan_out = is_fan_in_fan_out(layer)
        weight = layer.get_parameter("weight")
        if fan_in_fan_out:
            weight, mask = weight.t(), mask.t()
        sparse = (SparseConv1D if fan_in_fan_out else SparseLinear)(weight, mask, rows=rows)
        sparse.fan_in_fan_out = fan_in_fan_out
        sparse.out_features, sparse.in_features = weight.shape
        sparse.register_parameter("bias", layer._parameters.get("bias"))
        return sparse.train(layer.training)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (…, in) to (…, out); a residual, (…, out), is added before the activation."""
        return self._multiply(input, residual)

    def _multiply(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Map (…, in) to (…, out); a residual, (…, out), is added before the activation."""
        multiply = VARIANTS[self.backend].linear
        if multiply is None or is_transformed(x, self.values):
            weight = self._live_weight()
            y = F.linear(x, weight.t() if self.fan_in_fan_out else weight, self.bias)
            return with_epilogue(y, residual, self.activation)
        y = multiply(
            x,
            self.values,
            self.index,
            self.bias,
            residual=residual,
            activation=self.activation,
        )
        return self._observed(x, y)

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return the gradient of the dense weight, in `dense_shape`, zeros included."""
        dtype = self.values.dtype
        x, dy = x.reshape(-1, self.in_features), dy.reshape(-1, self.out_features)
        grad = dy.to(dtype).t() @ x.to(dtype)
        return grad.t() if self.fan_in_fan_out else grad

    def input_gradient(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        """Return what the gradient of the input would be with a dense `weight`."""
        return (dy.to(weight.dtype) @ (weight.t() if self.fan_in_fan_out else weight)).to(x.dtype)

    def to_dense(self) -> nn.Linear:
        """Return the dense layer with the same weight, zeros included."""
        # On the meta device, where it draws no random numbers.
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        weight = self.index.to_dense(self.values.detach())[:, :, 0, 0]
        layer.weight = nn.Parameter(weight, self.values.requires_grad)
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Return sizes and non-zeros."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"bias={self.bias is not None}"
        )

    def _matrix_shape(self) -> tuple[int, ...]:
        return self._shape[:2]


class SparseConv1D(SparseLinear):
    """Hugging Face's Conv1D, a linear layer with a weight (in, out), by its non-zeros only."""

    @property
    def nx(self) -> int:
        """Size of each input, as Hugging Face calls it."""
        return self.in_features

    @property
    def nf(self) -> int:
        """Size of each output, as Hugging Face calls it."""
        return self.out_features

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        """Map (…, in) to (…, out); a residual, (…, out), is added before the activation."""
        return self._multiply(x, residual)
