"""Where masks live: a persistent boolean buffer beside each sparse weight.

Because the mask is a buffer of the module that owns the weight, `state_dict`, `deepcopy`,
exponential moving averages and checkpoints carry it without knowing about sparsity.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError

SUFFIX = "_mask"


def get_mask(module: nn.Module, parameter: str = "weight") -> Tensor | None:
    """Return the mask of `module.<parameter>` (bool, shaped like it), or None if it is dense."""
    weight = module._parameters.get(parameter)
    mask = module._buffers.get(parameter + SUFFIX)
    if weight is None or mask is None or mask.dtype != torch.bool or mask.shape != weight.shape:
        return None
    return mask


def set_mask(module: nn.Module, parameter: str, mask: Tensor) -> None:
    """Attach `mask` to `module.<parameter>` and zero the weights that it excludes."""
    weight = module.get_parameter(parameter)
    assert mask.dtype == torch.bool
    assert mask.shape == weight.shape
    module.register_buffer(parameter + SUFFIX, mask, persistent=True)
    with torch.no_grad():
        weight.mul_(mask)


def remove_mask(module: nn.Module, parameter: str = "weight") -> None:
    """Forget the mask of `module.<parameter>`; its weights stay as they are."""
    module._buffers.pop(parameter + SUFFIX, None)
    module._non_persistent_buffers_set.discard(parameter + SUFFIX)


def named_masks(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Iterate over `(full parameter name, module, parameter, mask)` of every masked weight."""
    for path, module in model.named_modules():
        for parameter in module._parameters:
            mask = get_mask(module, parameter)
            if mask is not None:
                yield f"{path}.{parameter}" if path else parameter, module, parameter, mask


@torch.no_grad()
def apply_masks(model: nn.Module) -> None:
    """Zero the weights of `model` that its masks exclude.

    For copies whose weights were not made by a sparse optimizer step, above all averages over
    training (EMA, SWA): an average over changing masks is non-zero wherever any of them was.

    Raises:
        IsoflopError: The model has no masks.
    """
    found = False
    for _, module, parameter, mask in named_masks(model):
        module.get_parameter(parameter).masked_fill_(~mask, 0)
        found = True
    if not found:
        raise IsoflopError(
            f"{type(model).__name__} has no masks. Pass a model that `isoflop.sparsify` masked, or a "
            "copy of one."
        )
