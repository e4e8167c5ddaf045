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
        backbone: Path of the layers that may come from a trained classifier; None if there are none.
    """

    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    kind: Literal["image", "tokens"] = "image"
    backbone: str | None = None

    def __post_init__(self) -> None:
        # The docstring and the signature of an entry are its builder's.
        functools.update_wrapper(self, self.build)

    def __call__(self, *args: Any, **options: Any) -> nn.Module:
        """Build the model."""
        return self.build(*args, **options)


MODELS: Registry[ModelEntry] = Registry("isoflop model", "isoflop.models")
"""Entries by name; image models take `num_classes` and `in_channels`, some `base_width` or `backbone`
too."""


def register_model(
    name: str,
    input_shape: tuple[int, ...],
    kind: Literal["image", "tokens"] = "image",
    backbone: str | None = None,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator that registers a model builder, which it returns as it was.

    Args:
        name: Name of the model.
        input_shape: Shape of one sample.
        kind: What a sample is: an image of floats, or token numbers.
        backbone: Path of the layers that may come from a trained classifier, which the builder takes
            as its option `backbone`.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        MODELS.register(name)(ModelEntry(build, input_shape, kind, backbone))
        return build

    return add
