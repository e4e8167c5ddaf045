"""What the modules that take the place of a layer have in common."""

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from isoflop.flops.copies import keep_marks

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
"""Where a module keeps the hooks around its passes."""


class ReplacedLayer(nn.Module):
    """Base of the modules that take the place of a Linear or convolution.

    It holds the bias, under the name that it had, and lets model code read attributes of its
    layers, such as `out_features`, or `weight.dtype` to cast an input. It takes the arguments that the
    layer takes: all but the first go to the layers inside that are like it.

    Args:
        layer: The layer that is replaced; the bias is a copy of its bias.

    Attributes:
        bias: The bias `(Dout,)`, or None.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        old = layer._parameters.get("bias")
        # A single number keeps its value, see `initialize`.
        new = None if old is None else nn.Parameter(old.detach().clone(), old.requires_grad)
        if old is not None and new is not None:
            keep_marks(old, new)
        self.register_parameter("bias", new)
        convolution = isinstance(layer, _ConvNd)
        self._trailing = layer.get_parameter("weight").ndim - 2 if convolution else 0
        self._input = "input"

    @property
    def weight(self) -> nn.Parameter:
        """The weight that meets the input first, for code that reads its dtype or device.

        It is another name, not a parameter of this module: `named_parameters` and `state_dict` list
        it under the layer that it belongs to. It is not the weight of the layer that was replaced,
        and may have another shape.
        """
        return self.first_layer().get_parameter("weight")

    def first_layer(self) -> nn.Module:
        """Return the layer, or one of those, that the input meets first."""
        raise NotImplementedError

    def add_bias(self, x: Tensor) -> Tensor:
        """Add the bias to an output `(…, Dout)`, or `(B, cout, …)` of a convolution."""
        return x if self.bias is None else x + self.bias.reshape(-1, *[1] * self._trailing)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Map `(…, Din)` to `(…, Dout)`, or `(B, cin, …)` to `(B, cout, …)`."""
        if args:
            return self.compute(args[0], *args[1:], **kwargs)
        others = {name: value for name, value in kwargs.items() if name != self._input}
        return self.compute(kwargs[self._input], **others)

    def compute(self, input: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        """Do what `forward` does.

        Args:
            input: The input.
            args: What else the layer takes, such as the `output_size` of a transposed convolution.
            kwargs: The same by name.
        """
        raise NotImplementedError

    def keep_attributes(self, layer: nn.Module) -> None:
        """Take over hooks, attributes of the user's own, the input's name and the mode of `layer`."""
        self._input = next(iter(inspect.signature(layer.forward).parameters), self._input)
        for name in HOOKS:
            self.__dict__[name] = layer.__dict__[name]
        for name, value in layer.__dict__.items():
            own = value is not None and not isinstance(value, (Tensor, nn.Module))
            if own and not name.startswith("_") and not hasattr(self, name):
                self.__dict__[name] = value
        self.train(layer.training)
