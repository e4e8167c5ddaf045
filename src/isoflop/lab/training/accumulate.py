"""Batches in parts, whose gradients add up to that of the batch."""

from collections.abc import Iterator
from typing import Any


def micro_batches(inputs: Any, targets: Any, parts: int) -> Iterator[tuple[Any, Any]]:
    """Cut a batch into parts of nearly equal size, in order.

    Args:
        inputs: Tensors with the samples in the first dimension, lists of samples, or dictionaries and
            tuples of these.
        targets: Likewise; its length is the number of samples.
        parts: Number of parts; fewer if there are fewer samples.
    """
    count = len(targets)
    parts = min(parts, count)
    for i in range(parts):
        part = slice(i * count // parts, (i + 1) * count // parts)
        yield _cut(inputs, part), _cut(targets, part)


def _cut(value: Any, part: slice) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item, part) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(item, part) for item in value)
    return value[part]
