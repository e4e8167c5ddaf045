"""Sparse training: patterns, allocations and schedules, and the sparsifier that applies them."""

from isoflop.sparsity.accounting import training_flops
from isoflop.sparsity.allocation import ALLOCATIONS
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.drop_grow import DropGrow
from isoflop.sparsity.method import METHODS, Method
from isoflop.sparsity.patterns import PATTERNS, Pattern, Unstructured
from isoflop.sparsity.schedules import SCHEDULES
from isoflop.sparsity.sparsifier import Sparsifier

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
    "training_flops",
]
