"""The models that isoflop brings along, by name."""

from collections.abc import Callable

from torch import nn

from isoflop.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("isoflop model")
"""Builders by name; each takes `num_classes`, `in_channels` and `base_width`."""

INPUT_SHAPES: dict[str, tuple[int, ...]] = {}
"""Shape of one sample for each model of `MODELS`."""


def register_model(
    name: str, input_shape: tuple[int, ...]
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator that registers a model builder together with the shape of one sample."""
    INPUT_SHAPES[name] = input_shape
    return MODELS.register(name)
