"""What several commands share."""

import math
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.files import to_json


def shape_of(text: str) -> tuple[int, ...]:
    """Return the shape that `--input` gives.

    Raises:
        IsoflopError: It is no shape.
    """
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or math.prod(shape) >= 2**63:
        raise IsoflopError(f"--input {text!r} is no shape. Write sizes, such as 1,3,224,224.")
    return shape


def print_json(data: Any) -> None:
    """Print data as JSON."""
    print(to_json(data, indent=1))
