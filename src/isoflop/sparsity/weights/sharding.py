"""Weights that are spread over several devices (FSDP2): gathered to be ranked, masks spread again.

Every worker gathers the same weights and gradients and draws the same random numbers, so all choose
the same masks; each keeps its own part.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def full_tensor(tensor: Any) -> Tensor:
    """Return all of a tensor, on every worker, if it is spread over several; else the tensor."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def distribute_like(value: Tensor, like: Any) -> Tensor:
    """Return one's own part of `value`, which every worker has whole, if `like` is spread."""
    if not is_sharded(like) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    # No worker's value takes precedence: all have the same, and nothing is sent.
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def copy_into(target: Any, value: Tensor) -> None:
    """Copy `value`, which every worker has whole, into `target`, spread or not."""
    target.copy_(distribute_like(value, target))


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is spread over several workers."""
    if not dist.is_available() or type(tensor) in (Tensor, torch.nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Any) -> Tensor:
    """Return one's own part of a tensor, if it is spread over several devices; else the tensor."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def stamp(tensor: Tensor) -> tuple[int, int, int]:
    """Return what differs once a tensor has been replaced, or changed in place by PyTorch."""
    here = local(tensor)
    return id(tensor), here.data_ptr(), here._version
