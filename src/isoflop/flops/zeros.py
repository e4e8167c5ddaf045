"""Which numbers are zero whatever the weights are, because some are masked.

An operation is run on random numbers that are zero where masked weights are: what is zero however they
are drawn is zero because of the masks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map_only

from isoflop.flops.operations import is_pointwise, makes_integers
from isoflop.flops.origins import Origins, leaf_tensors

_DRAWS = ((64.0, 127.0), (-127.0, -64.0), (0.25, 0.5))
"""Ranges of the numbers: large ones survive rounding, and some functions take small ones only."""

_LARGEST = 2**24
"""More integers than these are not followed."""


class UnknownZerosError(Exception):
    """Which numbers are zero depends on values that a trace does not have."""


def real(tensor: Tensor) -> Tensor:
    """Return the values of a tensor, on the CPU, within a fake mode."""
    with unset_fake_temporarily():
        return tensor.detach().cpu()


def count(nonzero: Tensor) -> int:
    """Return how many booleans of a tensor are true, within a fake mode."""
    with unset_fake_temporarily():
        return int(nonzero.count_nonzero())


def macs_without_zeros(factors: list[Tensor], dense: int, *, matrices: bool) -> int:
    """Return the MACs of a product in which zeros are skipped.

    Args:
        factors: Which numbers are not zero, of each factor that has zeros.
        dense: The MACs with zeros.
        matrices: Whether it is a product of two matrices, or of two batches of them.
    """
    with unset_fake_temporarily():
        if len(factors) == 2 and matrices:
            one, two = (nonzero.double() for nonzero in factors)
            return int((one @ two).sum())
        for nonzero in factors:
            dense = dense * int(nonzero.count_nonzero()) // nonzero.numel()
    return dense


def values_of(
    func: Any, args: Any, kwargs: Any, results: list[Tensor], origins: Origins
) -> list[Tensor | None]:
    """Return the values of integers that follow from others; None of those that are not known."""
    operands = leaf_tensors((args, kwargs))
    unknown: list[Tensor | None] = [None] * len(results)
    if not (operands or makes_integers(func)) or any(t.numel() > _LARGEST for t in results):
        return unknown
    try:
        return list(_run(func, args, kwargs, results, lambda t: _known(t, origins)))
    except Exception:  # operations that need a value that is not known
        return unknown


def nonzero_of(
    func: Any, args: Any, kwargs: Any, results: list[Tensor], origins: Origins
) -> list[Tensor]:
    """Return which numbers of the results of an operation are not zero, as booleans.

    Raises:
        UnknownZerosError: It depends on values that are not known.
    """
    first = args[0] if args else None
    free = is_pointwise(func)
    lost = any(origins.of(t).lost is not None for t in leaf_tensors((args, kwargs)))
    found: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    for number, (low, high) in enumerate(_DRAWS):

        def draw(tensor: Tensor, low: float = low, high: float = high, n: int = number) -> Tensor:
            shape, dtype = tuple(tensor.shape), tensor.dtype
            numeric = dtype.is_floating_point or dtype.is_complex
            if not (numeric or free or tensor is first):
                return _known(tensor, origins)
            nonzero, unknown = origins.nonzero(tensor), origins.of(tensor).lost is not None
            if not numeric and low < 1:
                low, high = 1.0, 4.0
            with unset_fake_temporarily():
                if dtype == torch.bool:
                    return torch.full(shape, n == 0)
                if unknown:
                    return torch.zeros(shape, dtype=dtype)
                if nonzero is None:
                    return torch.full(shape, (low + high) / 2 + n / 7).to(dtype)
                drawn = torch.empty(shape).uniform_(low, high, generator=generator)
                return (drawn * nonzero).to(dtype)

        try:
            drawn = _run(func, args, kwargs, results, draw)
        except Exception as error:
            raise UnknownZerosError from error
        with unset_fake_temporarily():
            # Zero divided by zero is none of our numbers.
            new = [(t != 0) & ~t.isnan() for t in drawn]
            found = [a | b for a, b in zip(found, new, strict=True)] if found else new
    if lost and any(count(nonzero) < nonzero.numel() for nonzero in found):
        raise UnknownZerosError
    return found


def _known(tensor: Tensor, origins: Origins) -> Tensor:
    values = origins.values(tensor)
    if values is None:
        raise UnknownZerosError
    return values


def _run(
    func: Any, args: Any, kwargs: Any, results: list[Tensor], stand_in: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Run an operation on other operands; return what takes the place of each result."""
    made: dict[int, Tensor] = {}

    def replace(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new = stand_in(tensor)
            with unset_fake_temporarily():
                made[id(tensor)] = new.clone()  # as operations may write to it
        return made[id(tensor)]

    args, kwargs = tree_map_only(Tensor, replace, (args, kwargs))
    with unset_fake_temporarily(), torch.no_grad():
        out = func(*args, **kwargs)
    found = leaf_tensors(out)
    # What is written to and not returned comes last.
    return [*found, *(made[id(t)] for t in results[len(found) :])]
