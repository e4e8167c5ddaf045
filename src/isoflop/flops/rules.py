"""Rules for modules that no trace sees through."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from isoflop.errors import IsoflopError
from isoflop.registry import names_in

Forward = Callable[..., Any]


@dataclass(frozen=True)
class WideningRule:
    """What `isoflop.register_widening_rule` was told about the modules of a class.

    Attributes:
        forward: Forward pass of a trace, called as ``forward(module, *args, **kwargs)``.
        widths: Names of integer attributes that restate a width.
        constants: Names of integer attributes, parameters and buffers whose sizes stay.
        rebuild: Called with each module of a widened model.
    """

    forward: Forward | None = None
    widths: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()
    rebuild: Callable[[Any], None] | None = None


_RULES: dict[str, WideningRule] = {}
_NO_RULE = WideningRule()


def register_widening_rule(
    module_class: type[nn.Module] | str,
    *,
    forward: Forward | None = None,
    widths: str | Iterable[str] = (),
    constants: str | Iterable[str] = (),
    rebuild: Callable[[Any], None] | None = None,
) -> None:
    """Tell what a trace cannot see about the modules of a class and its subclasses.

    Models are widened by what one forward pass on tensors without values shows. A rule helps where
    that is not possible or not enough. It holds for the rest of the process; a later one for the
    same class takes its place.

    Args:
        module_class: The class, or its full name, such as ``"package.module.Class"``, which need
            not be imported yet.
        forward: A forward pass for traces, called as ``forward(module, *args, **kwargs)``. It must
            cost what the real one does, in operations that PyTorch counts, and return the shapes
            that the real one returns; no values are needed. For modules that read values (which
            expert a token goes to), or that call code that PyTorch does not know.
        widths: Names of integer attributes that restate a width, if their names do not say so, and of
            floats that are a power of one.
        constants: Names of integer attributes and floats that do not follow a width though their names
            or values say so, and of parameters and buffers no size of which may change.
        rebuild: Called as ``rebuild(module)`` for each module of a widened model that is not on the
            meta device, after it has its new sizes: it fills buffers whose content depends on a
            width.

    Raises:
        IsoflopError: The class is neither a class nor a full name, or the rule says nothing.
    """
    if isinstance(module_class, type) and issubclass(module_class, nn.Module):
        name = _name(module_class)
    elif isinstance(module_class, str) and "." in module_class:
        name = module_class
    else:
        raise IsoflopError(
            "module_class must be a subclass of torch.nn.Module or its full name, such as "
            f"'package.module.Class', not {module_class!r}."
        )
    names = (names_in(widths, "widths"), names_in(constants, "constants"))
    rule = WideningRule(forward, frozenset(names[0]), frozenset(names[1]), rebuild)
    if rule == _NO_RULE:
        raise IsoflopError(
            f"The rule for {name} says nothing: give forward, widths, constants or rebuild."
        )
    _RULES[name] = rule


def rule_of(module: nn.Module) -> WideningRule:
    """Return the rule of the nearest class of `module` that has one; else one that says nothing."""
    names = (_name(cls) for cls in type(module).__mro__)
    return next((_RULES[name] for name in names if name in _RULES), _NO_RULE)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
