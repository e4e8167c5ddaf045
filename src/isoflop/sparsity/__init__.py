"""Sparse training: patterns, allocations and schedules, and the sparsifier that applies them."""

from isoflop.sparsity.allocation import ALLOCATIONS
from isoflop.sparsity.method import METHODS, DropGrow, Method
from isoflop.sparsity.patterns import PATTERNS, Pattern, Unstructured
from isoflop.sparsity.schedules import SCHEDULES
from isoflop.sparsity.sparsifier import Sparsifier, sparsify

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "PATTERNS",
    "SCHEDULES",
    "DropGrow",
    "Method",
    "Pattern",
    "Sparsifier",
    "Unstructured",
    "sparsify",
]
