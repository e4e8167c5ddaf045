"""The same masks as `regular` finds, by a general solver of linear programs, one tile at a time.

The constraint matrix is that of a bipartite graph, hence totally unimodular: the vertices of the
polytope are integer, and the simplex method returns one. This is the reference by which the batched
solver is tested; it takes milliseconds for a tile of 8 × 8.
"""

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array
from torch import Tensor


def best_regular_reference(scores: Tensor, n: int, fixed: Tensor | None = None) -> Tensor:
    """Return the masks of highest total score whose rows and columns all have sum n.

    Args:
        scores: Finite scores, shaped (tile, size, size).
        n: Sum of each row and column, 0 < n < size.
        fixed: Boolean, shaped like `scores`: positions that must be in the mask.
    """
    size = scores.shape[-1]
    position = np.arange(size * size)
    lines = np.concatenate([position // size, size + position % size])
    ones = np.ones(2 * size * size)
    sums = coo_array((ones, (lines, np.tile(position, 2))), shape=(2 * size, size * size))
    masks = []
    for index, tile in enumerate(scores.double().cpu().numpy().reshape(len(scores), -1)):
        lower = np.zeros(size * size)
        if fixed is not None:
            lower = fixed[index].flatten().double().cpu().numpy()
        solution = linprog(
            -tile,
            A_eq=sums.tocsr(),
            b_eq=np.full(2 * size, n),
            bounds=np.stack([lower, np.ones_like(lower)], axis=1),
            method="highs-ds",
        )
        assert solution.success, solution.message
        masks.append(torch.from_numpy(solution.x > 0.5).view(size, size))
    return torch.stack(masks).to(scores.device)
