"""The models that isoflop brings along, by name."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from isoflop.registry import Registry


@dataclass(eq=False)
class ModelEntry:
    """A builder of models, and what they take; calling it builds one.

    Attributes:
        build: The builder.
        input_shape: Shape of one sample.
        kind: What a sample is: an image of floats, or token numbers.
    """

    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    kind: Literal["image", "tokens"] = "image"

    def __post_init__(self) -> None:
        # The docstring and the signature of an entry are its builder's.
        functools.update_wrapper(self, self.build)

    def __call__(self, *args: Any, **options: Any) -> nn.Module:
        """Build the model."""
        return self.build(*args, **options)


MODELS: Registry[ModelEntry] = Registry("isoflop model")
"""Entries by name; image models take `num_classes` and `in_channels`, some `base_width` too."""


def register_model(
    name: str, input_shape: tuple[int, ...], kind: Literal["image", "tokens"] = "image"
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator that registers a model builder, which it returns as it was.

    Args:
        name: Name of the model.
        input_shape: Shape of one sample.
        kind: What a sample is: an image of floats, or token numbers.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        MODELS.register(name)(ModelEntry(build, input_shape, kind))
        return build

    return add
