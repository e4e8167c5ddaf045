"""Sparse kernels for CPUs: linear and convolution layers that store and compute non-zeros only."""

from isoflop.kernels.functional import sparse_conv2d, sparse_linear
from isoflop.kernels.index import SparseIndex, build_index, default_blocks
from isoflop.kernels.layers import SparseConv2d, SparseLayer, SparseLinear
from isoflop.kernels.library import available, isa, isas, set_isa, why_unavailable

__all__ = [
    "SparseConv2d",
    "SparseIndex",
    "SparseLayer",
    "SparseLinear",
    "available",
    "build_index",
    "default_blocks",
    "isa",
    "isas",
    "set_isa",
    "sparse_conv2d",
    "sparse_linear",
    "why_unavailable",
]
