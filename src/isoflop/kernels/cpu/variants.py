"""The ways in which a sparse layer can compute, one row each.

A new one is a row here and what its functions call. Layers run it where their `backend` names it, and
`isoflop.accelerate` measures it wherever it runs and is allowed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from isoflop.kernels.cpu.functional import sparse_conv2d, sparse_linear
from isoflop.kernels.cpu.index import SparseIndex
from isoflop.kernels.cpu.library import has_bfloat16


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way in which a sparse layer can compute.

    Attributes:
        name: What `SparseLayer.backend` and reports call it.
        title: Heading of its times in printed reports.
        linear: Computes a linear layer, called like `sparse_linear`. None: PyTorch multiplies by the
            dense weight, made for the time of each pass.
        conv2d: Computes a convolution, called like `sparse_conv2d`, or None.
        takes: Whether it computes layers with this index.
        runs_here: Whether this processor has its instructions.
        needs: These instructions, for messages.
        rounds_to: The type to which it rounds what it multiplies, which users have to allow; None if
            it rounds nothing.
    """

    name: str
    title: str
    linear: Callable[..., Tensor] | None
    conv2d: Callable[..., Tensor] | None
    takes: Callable[[SparseIndex], bool] = lambda index: True
    runs_here: Callable[[], bool] = lambda: True
    needs: str = ""
    rounds_to: torch.dtype | None = None

    @property
    def batch_innermost(self) -> bool:
        """Whether its convolutions are fastest on activations with the batch innermost."""
        return self.conv2d is not None


VARIANTS = {
    row.name: row
    for row in (
        Variant(name="dense", title="dense", linear=None, conv2d=None),
        Variant(name="sparse", title="sparse", linear=sparse_linear, conv2d=sparse_conv2d),
        Variant(
            name="sparse_bfloat16",
            title="sparse bf16",
            linear=partial(sparse_linear, bfloat16=True),
            conv2d=partial(sparse_conv2d, bfloat16=True),
            runs_here=lambda: has_bfloat16(),
            needs="products of bfloat16",
            rounds_to=torch.bfloat16,
        ),
    )
}
"""The rows, by name."""
