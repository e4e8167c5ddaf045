"""How the layers of a model are called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.kernels.autotune.inputs import running
from isoflop.kernels.cpu.conv2d import SparseConv2d
from isoflop.kernels.cpu.layout import to_batch_innermost


@dataclass
class Call:
    """How a layer was called first, and how often in all."""

    path: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    count: int = 1

    @property
    def is_conv(self) -> bool:
        """Whether the layer is a convolution of batches of images."""
        kinds = (nn.Conv2d, SparseConv2d)
        return isinstance(self.module, kinds) and self.inputs[0].ndim == 4

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the inputs."""
        return tuple(tuple(x.shape) for x in self.inputs)

    @property
    def layout(self) -> str:
        """The layout in which dense layers have the input."""
        x = self.inputs[0]
        if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            return "channels_last"
        return "contiguous"

    def make_inputs(self, *, innermost: bool) -> list[Tensor]:
        """Return random inputs, with the batch innermost or in the layout of dense layers."""
        made = []
        for like in self.inputs:
            x = torch.randn(like.shape, device=like.device).to(like.dtype)
            if self.is_conv and innermost:
                x = to_batch_innermost(x)
            elif self.is_conv and self.layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            made.append(x.detach())
        return made


@torch.no_grad()
def record_calls(
    model: nn.Module,
    contestants: Mapping[str, object],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Call]:
    """Run the model and return the calls of convolutions and contestants, in order."""
    calls: dict[str, Call] = {}
    hooks = []

    def record(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
            if path in calls:
                calls[path].count += 1
            elif inputs:  # else it is called by keywords
                calls[path] = Call(path, module, tuple(x for x in inputs if x is not None))

        return hook

    for path, module in model.named_modules():
        if path in contestants or isinstance(module, nn.Conv2d):
            # After the call, so that one whose error the model catches is none.
            hooks.append(module.register_forward_hook(record(path)))
    try:
        model.eval()
        with running(model, (args, kwargs)):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())
