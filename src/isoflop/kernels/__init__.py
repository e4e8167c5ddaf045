"""Sparse kernels: linear and convolution layers that store and compute non-zeros only.

They are isoflop's own on CPUs, and PyTorch's for 2:4 sparsity on GPUs.
"""

from isoflop.kernels.autotune.accelerate import AccelerationReport, accelerate, accelerate_
from isoflop.kernels.autotune.choices import LayerChoice
from isoflop.kernels.convert import align_masks, compress, densify, densify_
from isoflop.kernels.cpu import counting  # noqa: F401  (tells PyTorch what the operators cost)
from isoflop.kernels.cpu.conv2d import SparseConv2d
from isoflop.kernels.cpu.functional import ACTIVATIONS, sparse_conv2d, sparse_linear
from isoflop.kernels.cpu.index import SparseIndex, build_index, default_blocks
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.kernels.cpu.library import available, has_bfloat16, isa, isas, set_isa, why_unavailable
from isoflop.kernels.cpu.linear import SparseConv1D, SparseLinear
from isoflop.kernels.cpu.memory import retain_freed_memory
from isoflop.kernels.fuse.freeze import freeze, frozen_dense
from isoflop.kernels.semi_structured import SemiStructuredLinear

__all__ = [
    "ACTIVATIONS",
    "AccelerationReport",
    "LayerChoice",
    "SemiStructuredLinear",
    "SparseConv1D",
    "SparseConv2d",
    "SparseIndex",
    "SparseLayer",
    "SparseLinear",
    "accelerate",
    "accelerate_",
    "align_masks",
    "available",
    "build_index",
    "compress",
    "default_blocks",
    "densify",
    "densify_",
    "freeze",
    "frozen_dense",
    "has_bfloat16",
    "isa",
    "isas",
    "retain_freed_memory",
    "set_isa",
    "sparse_conv2d",
    "sparse_linear",
    "why_unavailable",
]
