"""Masks and indices in PyTorch's averages over training (EMA, SWA): taken over, not averaged.

`AveragedModel` pairs parameters and buffers of model and average by their order. A mask is no number that
an average could be made of, equal weights subtract, which booleans do not allow, and an average that was
made before `sparsify` has no masks, so that all buffers behind one would be paired wrongly. Its method is
therefore replaced by one that keeps masks out of it. Models without sparse weights see no difference.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from isoflop.errors import IsoflopError
from isoflop.kernels.convert import align_masks
from isoflop.kernels.cpu.layers import SparseLayer
from isoflop.masks import mask_name, named_masks, take_masks

_FOLLOWING: list[Any] = []


def let_averages_follow() -> None:
    """Let PyTorch's `AveragedModel` take over the masks of the model at each update from now on."""
    if _FOLLOWING:
        return
    plain = AveragedModel.update_parameters

    @functools.wraps(plain)
    def update_parameters(self: AveragedModel, model: nn.Module) -> None:
        masked = any(True for _ in named_masks(model))
        compressed = any(isinstance(module, SparseLayer) for module in model.modules())
        if compressed:
            align_masks(self, model)
        if not (masked or compressed):
            plain(self, model)
            return
        _check_copy(self, model)
        with _masks_aside(self), _masks_aside(model):
            plain(self, model)
        take_masks(self, model)

    AveragedModel.update_parameters = update_parameters
    _FOLLOWING.append(plain)


def _check_copy(averaged: nn.Module, model: nn.Module) -> None:
    mine, theirs = ([p.shape for p in each.parameters()] for each in (averaged, model))
    if mine != theirs:
        raise IsoflopError(
            f"This {type(averaged).__name__} is no copy of the {type(model).__name__}: they do not have "
            "the same parameters. Make it of the model that is trained, after `isoflop.sparsify`."
        )


@contextlib.contextmanager
def _masks_aside(model: nn.Module) -> Iterator[None]:
    """Take the masks out of the buffers of a model, which keep their order."""
    masks = [
        (module, mask_name(module, name), mask) for _, module, name, mask in named_masks(model)
    ]
    for module, name, _ in masks:
        module._buffers[name] = None
    try:
        yield
    finally:
        for module, name, mask in masks:
            module._buffers[name] = mask
