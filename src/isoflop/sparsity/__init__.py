"""Sparse training: budgets and allocations, and the sparsifier that keeps weights sparse."""

from isoflop.sparsity.accounting import training_flops
from isoflop.sparsity.allocation import ALLOCATIONS, reallocate
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.init_context import ScoringData
from isoflop.sparsity.plain import plain_plan
from isoflop.sparsity.sparsifier import Sparsifier

__all__ = [
    "ALLOCATIONS",
    "ScoringData",
    "Sparsifier",
    "plain_plan",
    "reallocate",
    "sparsify",
    "training_flops",
]
