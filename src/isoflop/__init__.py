"""Sparse Iso-FLOP transformations for any PyTorch model.

`transform` makes a dense model larger and sparser at equal FLOPs, `sparsify` keeps it sparse while
any training loop trains it, and `profile` counts the FLOPs.
"""

from isoflop.budget import reallocate
from isoflop.deploy import ModelSource, load, save
from isoflop.errors import (
    BudgetError,
    CacheWarning,
    DataError,
    InputError,
    IsoflopError,
    KernelError,
    LayerCollapseWarning,
    ModelFileError,
    NoEffectWarning,
    NoTransformableLayersError,
    OptimizerError,
    PatternGapWarning,
    PlanError,
    RunDirectoryError,
    TrainedModelWarning,
    UncountedOperationWarning,
    UnknownNameError,
    WideningError,
)
from isoflop.flops import FlopTable, network_ends, profile
from isoflop.kernels import accelerate, align_masks, densify, freeze
from isoflop.masks import apply_masks
from isoflop.methods import (
    Dense,
    Force,
    Gmp,
    GraNet,
    Grasp,
    IterativeSnip,
    RigL,
    Set,
    SetOriginal,
    Snfs,
    Snip,
    SrSte,
    Static,
    SynFlow,
)
from isoflop.plan import LayerPlan, Plan
from isoflop.rules import register_widening_rule
from isoflop.sparsity import METHODS, PATTERNS, Sparsifier, sparsify, training_flops
from isoflop.transforms import (
    TRANSFORMS,
    LowRank,
    SparseDoped,
    SparseFactorized,
    SparseParallel,
    SparseWide,
    transform,
)

__version__ = "0.1.0"


def transforms() -> list[str]:
    """Return the names of the transforms."""
    return TRANSFORMS.names()


def methods() -> list[str]:
    """Return the names of the sparse training methods."""
    return METHODS.names()


def patterns() -> list[str]:
    """Return the names of the sparsity patterns."""
    return PATTERNS.names()


__all__ = [
    "BudgetError",
    "CacheWarning",
    "DataError",
    "Dense",
    "FlopTable",
    "Force",
    "Gmp",
    "GraNet",
    "Grasp",
    "InputError",
    "IsoflopError",
    "IterativeSnip",
    "KernelError",
    "LayerCollapseWarning",
    "LayerPlan",
    "LowRank",
    "ModelFileError",
    "ModelSource",
    "NoEffectWarning",
    "NoTransformableLayersError",
    "OptimizerError",
    "PatternGapWarning",
    "Plan",
    "PlanError",
    "RigL",
    "RunDirectoryError",
    "Set",
    "SetOriginal",
    "Snfs",
    "Snip",
    "SparseDoped",
    "SparseFactorized",
    "SparseParallel",
    "SparseWide",
    "Sparsifier",
    "SrSte",
    "Static",
    "SynFlow",
    "TrainedModelWarning",
    "UncountedOperationWarning",
    "UnknownNameError",
    "WideningError",
    "accelerate",
    "align_masks",
    "apply_masks",
    "densify",
    "freeze",
    "load",
    "methods",
    "network_ends",
    "patterns",
    "profile",
    "reallocate",
    "register_widening_rule",
    "save",
    "sparsify",
    "training_flops",
    "transform",
    "transforms",
]
