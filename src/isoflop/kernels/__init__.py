"""Sparse kernels for CPUs: linear and convolution layers that store and compute non-zeros only."""

from isoflop.kernels.convert import align_masks, compress, densify
from isoflop.kernels.functional import sparse_conv2d, sparse_linear
from isoflop.kernels.index import SparseIndex, build_index, default_blocks
from isoflop.kernels.layers import SparseConv2d, SparseLayer, SparseLinear
from isoflop.kernels.library import available, isa, isas, set_isa, why_unavailable

__all__ = [
    "SparseConv2d",
    "SparseIndex",
    "SparseLayer",
    "SparseLinear",
    "align_masks",
    "available",
    "build_index",
    "compress",
    "default_blocks",
    "densify",
    "isa",
    "isas",
    "set_isa",
    "sparse_conv2d",
    "sparse_linear",
    "why_unavailable",
]
