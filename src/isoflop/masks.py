"""Where masks live: a persistent boolean buffer beside each sparse weight.

Because the mask is a buffer of the module that owns the weight, `state_dict`, `deepcopy` and
checkpoints carry it without knowing about sparsity. The module notes which of its buffers are masks,
and of which parameters: a buffer of its own may have any name.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import IsoflopError
from isoflop.surgery import check_module

_MASKS = "_isoflop_masks"
"""Attribute of modules with masks: by parameter, the buffer's name and the active weights at first."""


def mask_name(module: nn.Module, parameter: str = "weight") -> str:
    """Return the name of the buffer that is the mask of `module.<parameter>`, or would be.

    Raises:
        IsoflopError: It has no mask, and the module has something else by either name.
    """
    if parameter in _masks_of(module):
        return _masks_of(module)[parameter][0]
    names = (f"{parameter}_mask", f"{parameter}_isoflop_mask")
    for name in names:
        if not hasattr(module, name) and not hasattr(type(module), name):
            return name
    raise IsoflopError(
        f"The mask of {parameter!r} would be a buffer {names[0]!r} or {names[1]!r} of the "
        f"{type(module).__name__}, which has attributes of its own by both names. Rename one of them, "
        "or exclude the layer."
    )


def get_mask(module: nn.Module, parameter: str = "weight") -> Tensor | None:
    """Return the mask of `module.<parameter>` (bool, shaped like it), or None if it is dense."""
    name, _ = _masks_of(module).get(parameter, ("", 0))
    if not name:
        return None
    weight, mask = module._parameters.get(parameter), module._buffers.get(name)
    if weight is None or mask is None or mask.dtype != torch.bool or mask.shape != weight.shape:
        return None
    return mask


def masked_by(module: nn.Module, buffer: str) -> str | None:
    """Return the parameter of `module` whose mask its buffer `buffer` is, or None if it is no mask."""
    for parameter, (name, _) in _masks_of(module).items():
        if name == buffer and get_mask(module, parameter) is not None:
            return parameter
    return None


def set_mask(module: nn.Module, parameter: str, mask: Tensor) -> None:
    """Attach `mask` to `module.<parameter>` and zero the weights that it excludes.

    Raises:
        IsoflopError: The names of its buffer are taken (see `mask_name`).
    """
    attach_mask(module, parameter, mask)
    with torch.no_grad():
        # A product would keep NaN.
        module.get_parameter(parameter).masked_fill_(~mask, 0)


def attach_mask(module: nn.Module, parameter: str, mask: Tensor) -> None:
    """Attach `mask` to `module.<parameter>`, which is zero off it already, or soon.

    Raises:
        IsoflopError: The names of its buffer are taken (see `mask_name`).
    """
    assert mask.dtype == torch.bool
    assert mask.shape == module.get_parameter(parameter).shape
    name = mask_name(module, parameter)
    module.register_buffer(name, mask, persistent=True)
    # Not changed in place: shallow copies of the module share it.
    module.__dict__[_MASKS] = {**_masks_of(module), parameter: (name, _active(mask))}


def remove_mask(module: nn.Module, parameter: str = "weight") -> None:
    """Forget the mask of `module.<parameter>`; its weights stay as they are."""
    left = dict(_masks_of(module))
    name, _ = left.pop(parameter, (None, 0))
    if name is None:
        return
    module._buffers.pop(name, None)
    module._non_persistent_buffers_set.discard(name)
    if left:
        module.__dict__[_MASKS] = left
    else:
        del module.__dict__[_MASKS]


def named_masks(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Iterate over `(full parameter name, module, parameter, mask)` of every masked weight."""
    for path, module in model.named_modules():
        for parameter in module._parameters if _masks_of(module) else ():
            mask = get_mask(module, parameter)
            if mask is not None:
                yield f"{path}.{parameter}" if path else parameter, module, parameter, mask


@torch.no_grad()
def apply_masks(averaged: nn.Module, model: nn.Module | None = None) -> None:
    """Zero the weights of `averaged` that the masks exclude.

    For copies whose weights were not made by a sparse optimizer step, above all averages over
    training (EMA, SWA): an average over changing masks is non-zero wherever any of them was.

    Args:
        averaged: A copy of a masked model, such as an `AveragedModel`.
        model: The model whose masks it shall have. Without it, those that it has itself: the present ones
            in PyTorch's `AveragedModel` and where buffers are copied, and not where they are averaged
            as well, or left alone.

    Raises:
        IsoflopError: There are no masks; those of `averaged` were averaged and `model` is missing; or
            `averaged` is no copy of `model`. Nothing has been changed then.
    """
    check_module(averaged)
    if model is None:
        _check_own_masks(averaged)
    else:
        check_module(model)
        _check_source(averaged, model)
        take_masks(averaged, model)
    for _, module, parameter, mask in named_masks(averaged):
        module.get_parameter(parameter).masked_fill_(~mask, 0)


def _check_own_masks(averaged: nn.Module) -> None:
    masks = list(named_masks(averaged))
    if not masks:
        raise IsoflopError(
            f"{type(averaged).__name__} has no masks. Pass a model that `isoflop.sparsify` masked, or a "
            "copy of one; compressed layers need none."
        )
    at_first = sum(_masks_of(module)[parameter][1] for _, module, parameter, _ in masks)
    present = sum(_active(mask) for *_, mask in masks)
    if present > at_first:
        raise IsoflopError(
            f"The buffers of this {type(averaged).__name__} were averaged, and the masks with them: they "
            f"have {present:,} active weights, where there were {at_first:,} when they were made. Pass "
            "the model in training too: isoflop.apply_masks(averaged, model)."
        )


def _check_source(averaged: nn.Module, model: nn.Module) -> None:
    if [shape for *_, shape in _weights(averaged)] != [shape for *_, shape in _weights(model)]:
        raise IsoflopError(
            f"{type(averaged).__name__} is no copy of {type(model).__name__}: they do not have the same "
            "parameters. Pass the average of a model and that model."
        )
    if not any(True for _ in named_masks(model)):
        raise IsoflopError(
            f"{type(model).__name__} has no masks. Pass the model that `isoflop.sparsify` masked; for "
            "compressed layers, call `isoflop.align_masks(averaged, model)` before each update of the "
            "average."
        )


def take_masks(averaged: nn.Module, model: nn.Module) -> None:
    """Give `averaged` the masks of `model`, of which it is a copy, perhaps wrapped; no weight changes."""
    for (module, parameter, _), (source, name, _) in zip(
        _weights(averaged), _weights(model), strict=True
    ):
        mine, theirs = get_mask(module, parameter), get_mask(source, name)
        if theirs is None:
            remove_mask(module, parameter)
        elif mine is None:
            own = theirs.detach().clone().to(module.get_parameter(parameter).device)
            attach_mask(module, parameter, own)
        else:
            mine.copy_(theirs)


def _weights(model: nn.Module) -> list[tuple[nn.Module, str, torch.Size]]:
    """Return owner, name and shape of all parameters, in their order."""
    return [
        (module, name, parameter.shape)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]


def _active(mask: Tensor) -> int:
    """Return how many weights a mask keeps, on all workers; 0 if it has no values."""
    count: Any = mask.count_nonzero()
    if hasattr(count, "full_tensor"):
        count = count.full_tensor()
    return 0 if count.is_meta else int(count)


def _masks_of(module: nn.Module) -> dict[str, tuple[str, int]]:
    return module.__dict__.get(_MASKS, {})
