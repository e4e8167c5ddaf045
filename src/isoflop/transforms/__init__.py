"""The Sparse-IFT family: one file and one frozen dataclass each."""

from isoflop.transforms.api import transform
from isoflop.transforms.base import TRANSFORMS, LayerTransform, Transform
from isoflop.transforms.build import find_transform
from isoflop.transforms.doped import SparseDoped
from isoflop.transforms.factorized import SparseFactorized
from isoflop.transforms.low_rank import LowRank
from isoflop.transforms.nonlinearity import NONLINEARITIES
from isoflop.transforms.parallel import SparseParallel
from isoflop.transforms.wide import SparseWide

__all__ = [
    "NONLINEARITIES",
    "TRANSFORMS",
    "LayerTransform",
    "LowRank",
    "SparseDoped",
    "SparseFactorized",
    "SparseParallel",
    "SparseWide",
    "Transform",
    "find_transform",
    "transform",
]
