"""A transform, from its registered name or from itself."""

import dataclasses
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.registry import did_you_mean
from isoflop.transforms.base import TRANSFORMS, Transform


def find_transform(value: Transform | str, **options: Any) -> Transform:
    """Return the transform called `value`, with these options; or `value` itself, if it is one.

    Raises:
        UnknownNameError: No transform has that name.
        IsoflopError: It does not take an option, or needs one that is missing; or options were passed
            beside a transform that has its own.
    """
    if isinstance(value, Transform):
        if options:
            raise IsoflopError(
                f"{', '.join(options)} cannot be passed beside the transform {value!r}, which has its "
                "own options. Set them there, or pass the transform by its name."
            )
        return value
    if not isinstance(value, str):
        raise IsoflopError(
            "config must be a transform, such as isoflop.SparseWide(sparsity=0.75), or the name of one, "
            f"not {value!r}. Known: {', '.join(TRANSFORMS.names())}."
        )
    kind: Any = TRANSFORMS.get(value)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in options:
        if key not in fields:
            raise IsoflopError(
                f"The transform {value!r} takes no {key}; it takes {', '.join(fields)}."
                f"{did_you_mean(key, fields)}"
            )
    for key, field in fields.items():
        no_default = field.default is dataclasses.MISSING
        if no_default and field.default_factory is dataclasses.MISSING and key not in options:
            raise IsoflopError(
                f"The transform {value!r} needs {key}, such as {key}=0.75 (--{key} 0.75 on the command "
                "line)."
            )
    return kind(**options)
