"""Patterns by name, as users write them."""

import re

from isoflop.errors import UnknownNameError
from isoflop.patterns.base import PATTERNS, Pattern
from isoflop.patterns.block import Block
from isoflop.patterns.nm import NM
from isoflop.patterns.transposable import Transposable
from isoflop.registry import did_you_mean, find_name

_FORM = re.compile(r"(\d+)([:x])(\d+)(-t)?", re.IGNORECASE)


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that `text` names.

    Args:
        text: A registered name, which stands for its default options, or one of the forms
            ``"2:4"`` (N:M), ``"4:8-T"`` (transposable N:M) and ``"16x16"`` (blocks of output ×
            input channels).

    Raises:
        IsoflopError: There is no such pattern, or its numbers make no sense.
    """
    match = _FORM.fullmatch(text)
    if match:
        first, sign, second, transposable = match.groups()
        a, b = int(first), int(second)
        if sign == ":":
            return Transposable(n=a, m=b) if transposable else NM(n=a, m=b)
        if not transposable:
            return Block(rows=a, columns=b)
    if find_name(text, PATTERNS.names()):
        return PATTERNS.get(text)()
    raise UnknownNameError(
        f"Unknown pattern {text!r}.{did_you_mean(text, PATTERNS.names())} Known: "
        f"{', '.join(PATTERNS.names())}, and the forms '2:4' (N:M), '4:8-T' (transposable N:M) and "
        "'16x16' (blocks of output x input channels)."
    )
