"""Transforms and methods from their registered names."""

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

import isoflop.methods  # noqa: F401  (registers the methods)
from isoflop.errors import IsoflopError
from isoflop.lab.recipes.base import METHOD_OPTIONS, Recipe
from isoflop.methods.base import METHODS, Method
from isoflop.registry import did_you_mean, find_name
from isoflop.transforms import Transform, find_transform


def build_transform(name: str, **options: Any) -> Transform:
    """Return the configuration of the transform called `name`; options that are None are left out.

    Raises:
        UnknownNameError: No transform has that name.
        IsoflopError: It does not take an option, or needs one that is missing.
    """
    return find_transform(name, **{k: v for k, v in options.items() if v is not None})


def method_options(name: str) -> list[str]:
    """Return the names of the options of the training method called `name`."""
    kind: Any = METHODS.get(name)
    return [field.name for field in dataclasses.fields(kind)]


def build_method(name: str, recipe: Recipe, **options: Any) -> Method:
    """Return the training method called `name`, with the recipe's values where it takes them.

    The recipe's defaults are those of RigL in the paper. Another method keeps its own, unless the
    recipe has other values or was given some (`Recipe.replace`).

    Args:
        name: Registered name of the method.
        recipe: The recipe.
        options: Options of the method, which come before those of the recipe.

    Raises:
        UnknownNameError: No method has that name.
        IsoflopError: It does not take an option, or a value that the recipe was given.
    """
    kind: Any = METHODS.get(name)
    fields = method_options(name)
    options = {find_name(key, fields) or key: value for key, value in options.items()}
    for key in options:
        if key not in fields:
            raise IsoflopError(
                f"The method {name!r} takes no {key}; {_takes(fields)}.{did_you_mean(key, fields)}"
            )
    own = {field.name: field.default for field in dataclasses.fields(Recipe)}
    values = {}
    for key in METHOD_OPTIONS:
        value = getattr(recipe, key)
        _check_taken(name, fields, key, recipe)
        if key in fields and (key in recipe.given or value != own[key]):
            values[key] = value
    return kind(**values | options)


def check_options(method: Method, recipe: Recipe) -> None:
    """Raise if the recipe was given options of methods that `method` does not have."""
    fields = [field.name for field in dataclasses.fields(method)]
    for key in METHOD_OPTIONS:
        value = getattr(recipe, key)
        _check_taken(method.name, fields, key, recipe)
        if key in recipe.given and getattr(method, key) != value:
            raise IsoflopError(
                f"The recipe was given {key}={value!r}, the method {method.name!r} has "
                f"{getattr(method, key)!r}. Give it once, to one of them."
            )


def _check_taken(name: str, fields: Sequence[str], key: str, recipe: Recipe) -> None:
    if key in recipe.given and key not in fields:
        raise IsoflopError(
            f"The method {name!r} takes no {key}; {_takes(fields)}. Leave it out; in a recipe for "
            "several methods, set it by dataclasses.replace instead of recipe.replace."
        )


def _takes(fields: Sequence[str]) -> str:
    return f"it takes {', '.join(fields)}" if fields else "it takes no options"


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return options such as ``pruning_end=0.3`` as a dictionary; what is no number stays text."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise IsoflopError(f"{text!r} is no option. Write name=value, such as pruning_end=0.3.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options
