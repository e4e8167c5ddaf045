"""Spectral measures of masks: Ramanujan gaps and weighted spectral gaps.

A masked layer is a bipartite graph: its left nodes are the inputs (channel and kernel position),
its right nodes the outputs, and its edges the active weights. The graph's eigenvalues are plus and
minus the singular values of the matrix of the layer, so the largest singular value is the trivial
eigenvalue, and the second one the non-trivial eigenvalue that the measures compare with the bound
of a Ramanujan graph. The adjacency matrix is never built.

Sources: Sparse-IFT, section 5, https://arxiv.org/abs/2303.11525; Hoang et al. 2023, "Revisiting
pruning at initialization through the lens of Ramanujan graph" (the code of which takes the second
singular value as here), and "Don't just prune by magnitude! Your mask topology is another secret
weapon".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from isoflop.errors import IsoflopError
from isoflop.masks import named_masks
from isoflop.registry import known_name
from isoflop.surgery import check_module, weight_sides

Matrix = Any
"""A `scipy.sparse.csc_array` of floats, (right, left)."""

Bound = Literal["mean-degree", "biregular", "mu0"]

MEASURES = ("ramanujan_gap", "imdb", "imdb_normalized", "spectral_gap", "imsg")
"""The fields of a `Spectrum` that are measures, the others being sizes."""

LEAST_DEGREE = 3.0
"""Least mean degree, on both sides, of a graph that the measures are defined for."""

_SHARED = 3
"""How many left nodes must share a degree to make a subgraph."""

_DENSE = 256
"""Matrices with a side of at most so many are decomposed exactly."""

_TOLERANCE = 1e-7
"""Largest residual of an iterative solution, relative to the largest singular value."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The measures of one layer; None where they are not defined, with the reason.

    Attributes:
        left: Inputs with at least one edge.
        right: Outputs with at least one edge.
        edges: Active weights.
        left_degree: Mean number of edges of a left node.
        right_degree: Mean number of edges of a right node.
        ramanujan_gap: Δr, the bound minus the second singular value of the mask.
        imdb: Δr of the left-regular subgraphs, on average ("iterative mean difference of bound").
        imdb_normalized: The same, each relative to its bound.
        spectral_gap: λ, first minus second singular value of the absolute weights.
        imsg: λ of the same subgraphs, on average ("iterative mean weighted spectral gap").
        subgraphs: How many subgraphs there are.
        skipped: Why measures are missing, or None.
    """

    left: int
    right: int
    edges: int
    left_degree: float
    right_degree: float
    ramanujan_gap: float | None = None
    imdb: float | None = None
    imdb_normalized: float | None = None
    spectral_gap: float | None = None
    imsg: float | None = None
    subgraphs: int = 0
    skipped: str | None = None


def analyze(model: nn.Module, *, bound: Bound = "mean-degree") -> dict[str, Spectrum]:
    """Return the measures of every masked layer of a model, by parameter name.

    Args:
        model: A model that `isoflop.sparsify` masked, or a copy of one.
        bound: See `analyze_mask`.

    Raises:
        IsoflopError: The model has no masks, is on the meta device, or has weights that are not
            finite.
    """
    check_module(model)
    bound = known_name(bound, get_args(Bound), "bound")
    found = {}
    for name, module, parameter, mask in named_masks(model):
        weight = module.get_parameter(parameter)
        if mask.is_meta or weight.is_meta:
            raise IsoflopError("A model on the meta device has no masks to analyse.")
        edges = _plain(mask)
        size = _magnitudes(weight, edges, repr(name))
        groups = getattr(module, "groups", 1)
        found[name] = _measures(
            _blocks(module, edges, groups), _blocks(module, size, groups), bound
        )
    if not found:
        raise IsoflopError(
            f"{type(model).__name__} has no masks. Pass a model that `isoflop.sparsify` masked; of one "
            "with compressed layers, `isoflop.densify(model)`."
        )
    return found


def average(layers: Mapping[str, Spectrum]) -> dict[str, float | None]:
    """Return the measures of the network: of each, the mean over the layers that have it.

    The paper does not say how it joins layers; every layer counts alike here. A measure that no
    layer has is None.
    """
    values = {name: [getattr(layer, name) for layer in layers.values()] for name in MEASURES}
    return {name: _mean([v for v in found if v is not None]) for name, found in values.items()}


def analyze_mask(
    mask: Tensor, weight: Tensor | None = None, *, groups: int = 1, bound: Bound = "mean-degree"
) -> Spectrum:
    """Return the measures of one mask.

    Args:
        mask: Boolean, (outputs, inputs) or (outputs, inputs / groups, *kernel). The mask decides
            the edges, not the weights, of which new ones are zero.
        weight: The weights, of the same shape; without them the weighted measures are None.
        groups: Groups of the convolution: the graph is that of a block-diagonal matrix.
        bound: The bound of the second singular value, of a graph with E edges: ``"mean-degree"``,
            ``2 sqrt(d - 1)`` with ``d = 2 E / (left + right)`` (Sparse-IFT); ``"biregular"``,
            ``sqrt(d_left - 1) + sqrt(d_right - 1)``; ``"mu0"``, ``2 sqrt(mu - 1)`` with the first
            singular value mu.

    Raises:
        IsoflopError: The shapes or the bound cannot be meant, or a weight is not finite.
    """
    for name, tensor in (("mask", mask), ("weight", weight)):
        if not (isinstance(tensor, Tensor) or (name == "weight" and tensor is None)):
            raise IsoflopError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}.")
    if not isinstance(groups, int) or groups < 1:
        raise IsoflopError(f"groups must be a whole number of at least 1, not {groups!r}.")
    bound = known_name(bound, get_args(Bound), "bound")
    if mask.ndim < 2 or (weight is not None and weight.shape != mask.shape):
        raise IsoflopError(
            "mask must be (outputs, inputs, *kernel), and weight of the same shape, not "
            f"{tuple(mask.shape)} and {None if weight is None else tuple(weight.shape)}."
        )
    if mask.shape[0] % groups:
        raise IsoflopError(f"{groups} groups do not divide {mask.shape[0]} outputs.")
    if mask.is_meta or (weight is not None and weight.is_meta):
        raise IsoflopError("A mask on the meta device has no edges to analyse.")
    edges = _plain(mask) != 0
    sizes = None if weight is None else _cut(_magnitudes(weight, edges, "this mask"), groups)
    return _measures(_cut(edges, groups), sizes, bound)


def _magnitudes(weight: Tensor, edges: Tensor, of: str) -> Tensor:
    """Return the absolute weights on edges, real or complex, of whatever type, in float64."""
    weight = _plain(weight)
    size = weight.to(torch.complex128 if weight.is_complex() else torch.float64).abs()
    size = size.masked_fill(~edges, 0)
    if not bool(size.isfinite().all()):
        raise IsoflopError(
            f"The weights of {of} are not finite, so they have no spectrum. Take weights from before "
            "the training diverged."
        )
    return size


def _plain(tensor: Any) -> Tensor:
    """Return all of a tensor, spread over workers, sparse or quantised as it may be, on the CPU."""
    tensor = tensor.detach()
    tensor = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _blocks(module: nn.Module, tensor: Tensor, groups: int) -> list[np.ndarray]:
    """Return a layer's tensor as the (outputs, inputs) blocks of a block-diagonal matrix."""
    if isinstance(module, _ConvNd) and module.transposed:
        # (inputs, outputs / groups, *kernel)
        parts = tensor.chunk(groups)
        return [block for part in parts for block in _cut(part.transpose(0, 1), 1)]
    output, inputs = weight_sides(module, tensor)
    if output > 0 and tensor.ndim == 2:
        tensor = tensor.transpose(output, inputs)
    elif tensor.ndim == 3 and not isinstance(module, _ConvNd):
        # Experts: each has a graph of its own.
        oriented = tensor if output < inputs else tensor.transpose(1, 2)
        return [block for expert in oriented for block in _cut(expert, 1)]
    return _cut(tensor, groups)


def _cut(tensor: Tensor, groups: int) -> list[np.ndarray]:
    matrix = tensor.reshape(tensor.shape[0], math.prod(tensor.shape[1:]))
    return [part.numpy() for part in matrix.chunk(groups)]


def _measures(
    masks: Sequence[np.ndarray], weights: Sequence[np.ndarray] | None, bound: Bound
) -> Spectrum:
    edges = [scipy.sparse.csr_array((m != 0).astype(np.float64)) for m in masks]
    blocks = scipy.sparse.block_diag(edges)
    graph: Matrix = scipy.sparse.csc_array(blocks)
    weighted = None
    if weights is not None:
        absolute = [w * (m != 0) for w, m in zip(weights, masks, strict=True)]
        weighted = scipy.sparse.csc_array(scipy.sparse.block_diag(absolute))
    whole = _trimmed(graph, np.arange(graph.shape[1]), weighted)
    sizes = {
        "left": whole.graph.shape[1],
        "right": whole.graph.shape[0],
        "edges": int(whole.graph.nnz),
        "left_degree": whole.left_degree,
        "right_degree": whole.right_degree,
    }
    if whole.reason:
        return Spectrum(**sizes, skipped=whole.reason)
    gap, _ = whole.ramanujan(bound)
    parts = [part for part in _subgraphs(graph, weighted) if not part.reason]
    gaps = [part.ramanujan(bound) for part in parts]
    return Spectrum(
        **sizes,
        ramanujan_gap=gap,
        imdb=_mean([gap for gap, _ in gaps]),
        imdb_normalized=_mean([gap / limit for gap, limit in gaps]),
        spectral_gap=whole.spectral(),
        imsg=None if weights is None else _mean([_some(part.spectral()) for part in parts]),
        subgraphs=len(parts),
        skipped=None if parts else "no subgraph of equal left degrees is large enough",
    )


@dataclass(frozen=True)
class _Graph:
    """A graph without isolated nodes, as a (right, left) matrix, and its weights."""

    graph: Matrix
    weighted: Matrix | None

    @property
    def left_degree(self) -> float:
        return self.graph.nnz / max(1, self.graph.shape[1])

    @property
    def right_degree(self) -> float:
        return self.graph.nnz / max(1, self.graph.shape[0])

    @property
    def reason(self) -> str | None:
        """Why the measures are not defined, or None."""
        for side, degree in (("left", self.left_degree), ("right", self.right_degree)):
            if degree < LEAST_DEGREE:
                return f"mean {side} degree {degree:.2f} below {LEAST_DEGREE:g}"
        return None

    def ramanujan(self, bound: Bound) -> tuple[float, float]:
        """Return Δr and the bound."""
        first, second = largest_two(self.graph)
        right, left = self.graph.shape
        if bound == "mean-degree":
            limit = 2 * math.sqrt(2 * self.graph.nnz / (left + right) - 1)
        elif bound == "biregular":
            limit = math.sqrt(self.left_degree - 1) + math.sqrt(self.right_degree - 1)
        else:
            limit = 2 * math.sqrt(first - 1)
        return limit - second, limit

    def spectral(self) -> float | None:
        """Return λ, or None without weights."""
        if self.weighted is None:
            return None
        first, second = largest_two(self.weighted)
        return first - second


def _trimmed(graph: Matrix, left: np.ndarray, weighted: Matrix | None) -> _Graph:
    """Return the graph of some left nodes and all right ones, isolated nodes left out."""
    part = graph[:, left]
    columns = np.flatnonzero(np.diff(part.indptr))
    rows = np.unique(part.indices)
    part = part[:, columns][rows, :]
    if weighted is not None:
        weighted = weighted[:, left][:, columns][rows, :]
    return _Graph(part, weighted)


def _subgraphs(graph: Matrix, weighted: Matrix | None) -> Iterator[_Graph]:
    """Iterate over the subgraphs of the left nodes of each degree that enough of them share."""
    degrees = np.diff(graph.indptr)
    for degree, count in zip(*np.unique(degrees, return_counts=True), strict=True):
        if degree > 0 and count >= _SHARED:
            yield _trimmed(graph, np.flatnonzero(degrees == degree), weighted)


def largest_two(matrix: Matrix) -> tuple[float, float]:
    """Return the two largest singular values of a sparse matrix.

    Small matrices are decomposed exactly in float64. Larger ones are by Lanczos iterations, from a
    fixed start; where the residual is too large, exactly after all.
    """
    if min(matrix.shape) < 2:
        return float(scipy.sparse.linalg.norm(matrix)), 0.0
    if min(matrix.shape) > _DENSE:
        found: Any = scipy.sparse.linalg.svds(
            matrix, k=2, v0=np.ones(min(matrix.shape)), solver="arpack"
        )
        left, values, right = found
        residual = np.abs(matrix @ right.T - left * values).max()
        if residual <= _TOLERANCE * values.max():
            return float(values.max()), float(values.min())
    values = np.linalg.svd(matrix.toarray(), compute_uv=False)
    return float(values[0]), float(values[1])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _some(value: float | None) -> float:
    assert value is not None
    return value
