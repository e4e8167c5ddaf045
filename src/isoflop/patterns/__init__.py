"""Patterns: how scores become masks.

A pattern decides which positions may be non-zero together. It knows nothing of training: methods
hand it scores and receive masks with an exact number of active positions.
"""

from isoflop.patterns.base import PATTERNS, Pattern
from isoflop.patterns.block import Block
from isoflop.patterns.nm import NM
from isoflop.patterns.parse import parse_pattern
from isoflop.patterns.transposable import Transposable
from isoflop.patterns.unstructured import Unstructured

__all__ = [
    "NM",
    "PATTERNS",
    "Block",
    "Pattern",
    "Transposable",
    "Unstructured",
    "parse_pattern",
]
