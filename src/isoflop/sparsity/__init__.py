"""Sparse training: patterns, allocations and schedules, and the sparsifier that applies them."""

from isoflop.sparsity.accounting import training_flops
from isoflop.sparsity.allocation import ALLOCATIONS
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.drop_grow import DropGrow
from isoflop.sparsity.method import METHODS, Method
from isoflop.sparsity.patterns import (
    NM,
    PATTERNS,
    Block,
    Pattern,
    Transposable,
    Unstructured,
    parse_pattern,
)
from isoflop.sparsity.schedules import SCHEDULES
from isoflop.sparsity.sparsifier import Sparsifier

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "NM",
    "PATTERNS",
    "SCHEDULES",
    "Block",
    "DropGrow",
    "Method",
    "Pattern",
    "Sparsifier",
    "Transposable",
    "Unstructured",
    "parse_pattern",
    "sparsify",
    "training_flops",
]
