"""Patterns by name, as users write them."""

from isoflop.errors import UnknownNameError
from isoflop.patterns.base import PATTERNS, Pattern
from isoflop.registry import did_you_mean, find_name


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that `text` names.

    Args:
        text: A registered name, which stands for its default options, or what a registered class
            parses, such as ``"2:4"`` (N:M), ``"4:8-T"`` (transposable N:M) and ``"16x16"`` (blocks
            of output × input channels).

    Raises:
        IsoflopError: There is no such pattern, or its numbers make no sense.
    """
    for _, kind in PATTERNS.items():
        pattern = kind.parse(text)
        if pattern is not None:
            return pattern
    names = PATTERNS.names()
    if find_name(text, names):
        return PATTERNS.get(text)()
    forms = ", ".join(kind.form for _, kind in PATTERNS.items() if kind.form)
    raise UnknownNameError(
        f"Unknown pattern {text!r}.{did_you_mean(text, names)} Known: {', '.join(names)}, and the "
        f"forms {forms}."
    )
