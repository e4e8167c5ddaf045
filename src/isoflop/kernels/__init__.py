"""Sparse kernels for CPUs: linear and convolution layers that store and compute non-zeros only."""

from isoflop.kernels.choose import AccelerationReport, accelerate
from isoflop.kernels.contest import LayerChoice
from isoflop.kernels.freeze import freeze, frozen_dense
from isoflop.kernels.functional import ACTIVATIONS, sparse_conv2d, sparse_linear
from isoflop.kernels.index import SparseIndex, build_index, default_blocks
from isoflop.kernels.layers import SparseConv2d, SparseLayer, SparseLinear
from isoflop.kernels.library import available, isa

__all__ = [
    "ACTIVATIONS",
    "AccelerationReport",
    "LayerChoice",
    "SparseConv2d",
    "SparseIndex",
    "SparseLayer",
    "SparseLinear",
    "accelerate",
    "available",
    "build_index",
    "default_blocks",
    "freeze",
    "frozen_dense",
    "isa",
    "sparse_conv2d",
    "sparse_linear",
]
