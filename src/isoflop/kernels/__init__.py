"""Sparse kernels for CPUs: linear and convolution layers that store and compute non-zeros only."""

from isoflop.kernels.index import SparseIndex, build_index, default_blocks

__all__ = ["SparseIndex", "build_index", "default_blocks"]
