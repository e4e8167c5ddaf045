"""The memory layout of models in training."""

from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = 16
"""Channels that oneDNN computes together with AVX-512; 8 with AVX2."""


def use_fast_layout(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, with the layout in which its convolutions are fastest.

    With the channels innermost they are up to a third faster, on CPU and GPU alike. Left as they are,
    inputs included, are models on the CPU that have a 1×1 convolution with strides and few channels,
    as the shortcuts of narrow ResNets are: with the channels innermost, the gradient of its weights is
    written beyond its memory, and the process may crash (oneDNN 6035).
    """
    if device.type == "cpu" and any(_overruns(layer) for layer in model.modules()):
        model.to(device)
        model.register_forward_pre_hook(_contiguous)
    else:
        model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _overruns(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels < _BLOCK
    )


def _contiguous(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    del model
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)
