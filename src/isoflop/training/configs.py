"""Transforms and methods from their registered names."""

import dataclasses
from typing import Any

import isoflop.methods  # noqa: F401  (registers the methods)
from isoflop.errors import IsoflopError
from isoflop.sparsity.method import METHODS, Method
from isoflop.training.recipes import Recipe
from isoflop.transforms import TRANSFORMS, Transform


def build_transform(name: str, **options: Any) -> Transform:
    """Return the configuration of the transform called `name`; options that are None are left out.

    Raises:
        UnknownNameError: No transform has that name.
        IsoflopError: It does not take an option, or needs one that is missing.
    """
    kind: Any = TRANSFORMS.get(name)
    options = {key: value for key, value in options.items() if value is not None}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in options:
        if key not in fields:
            raise IsoflopError(
                f"The transform {name!r} takes no {key}; it takes {', '.join(fields)}."
            )
    for key, field in fields.items():
        no_default = field.default is dataclasses.MISSING
        if no_default and field.default_factory is dataclasses.MISSING and key not in options:
            raise IsoflopError(f"The transform {name!r} needs {key}, for instance --{key} 0.75.")
    return kind(**options)


def build_method(name: str, recipe: Recipe) -> Method:
    """Return the training method called `name`, with the recipe's values where it takes them.

    Raises:
        UnknownNameError: No method has that name.
    """
    kind: Any = METHODS.get(name)
    values = {"alpha": recipe.alpha, "update_every": recipe.update_every}
    values["end_fraction"] = recipe.end_fraction
    fields = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in values.items() if key in fields})
