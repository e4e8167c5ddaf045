"""Sparse training: budgets and allocations, and the sparsifier that keeps weights sparse."""

from isoflop.sparsity.accounting import training_flops
from isoflop.sparsity.allocation import ALLOCATIONS
from isoflop.sparsity.api import sparsify
from isoflop.sparsity.sparsifier import Sparsifier

__all__ = ["ALLOCATIONS", "Sparsifier", "sparsify", "training_flops"]
