"""Sizes of weights that are no widths, so that a transform must leave them."""

from collections.abc import Callable, Iterable

from torch import nn

from tools.zoo.build import build
from tools.zoo.sizes import FIXED

SMALL = frozenset({2, 3})
"""Coordinates, colours, a mean and a maximum."""


def fixed_sizes(
    spec: str, model: nn.Module, outputs: Iterable[tuple[int, ...]]
) -> Callable[[str], frozenset[int]]:
    """Return a function that returns the sizes of a weight, by its name, that are no widths.

    Those of the tiny text models are known. Of others they are the sizes of the outputs, the
    numbers of heads, and the sizes that are different where the model is built for larger images:
    numbers of tokens.

    Args:
        spec: The model.
        model: The model itself.
        outputs: The shapes of its outputs.
    """
    if spec.startswith("transformers:"):
        return lambda name: FIXED
    modules = dict(model.named_modules())
    results = SMALL.union(*outputs)
    tokens: dict[str, frozenset[int]] = {}
    compared = False

    def fixed(name: str) -> frozenset[int]:
        nonlocal tokens, compared
        if not compared:
            tokens, compared = _token_sizes(spec, model), True
        rows = _rows(model, name)
        return results | rows | _heads(modules, name) | tokens.get(name, frozenset())

    return fixed


def _rows(model: nn.Module, name: str) -> frozenset[int]:
    """Return the number of relative positions of a table of them, (positions, width)."""
    if "_rel" not in name.rpartition(".")[2]:
        return frozenset()
    return frozenset({model.get_parameter(name).shape[0]})


def _heads(modules: dict[str, nn.Module], name: str) -> frozenset[int]:
    """Return the number of heads of the innermost module around a weight that has one."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        heads = getattr(modules[path], "num_heads", None)
        if isinstance(heads, int):
            return frozenset({heads})
    return frozenset()


def _token_sizes(spec: str, model: nn.Module) -> dict[str, frozenset[int]]:
    size = getattr(model, "default_cfg", {}).get("input_size", (3, 0, 0))[-1]
    if not spec.startswith("timm:") or not size:
        return {}
    try:
        larger = build(spec, meta=True, img_size=2 * size)
    except Exception:  # most models are not built for an image size
        return {}
    shapes = {name: tuple(p.shape) for name, p in larger.named_parameters()}
    return {
        name: frozenset(a for a, b in zip(p.shape, shapes[name], strict=True) if a != b)
        for name, p in model.named_parameters()
        if name in shapes and len(shapes[name]) == p.ndim
    }
