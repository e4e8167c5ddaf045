"""Errors by their cause: messages without what differs from model to model."""

import re

LENGTH = 200

_UNTRACEABLE = re.compile(
    r"^.* cannot be traced with example inputs of shapes \[.*?\]: .*? raised "
    r"(.*?)(\.? Pass example_inputs.*)?$"
)
_PARTS = (
    (_UNTRACEABLE, r"cannot be traced: \1"),
    (re.compile(r"(did not grow with the others).*$"), r"\1"),
    (re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"), "…"),  # names
    (re.compile(r"[\[(][-\d.,\s×sx()\[\]]*\d[-\d.,\s×sx()\[\]]*[\])]"), "(…)"),  # shapes
    (re.compile(r"\S*/\S+/\S*\w"), "…"),  # files
    (re.compile(r"0x[0-9a-f]+|(?<!\w)[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?"), "N"),
    (re.compile(r"\s+"), " "),
)


def cause_of(error: str, message: str) -> str:
    """Return the cause of an error, the same text for the same mistake in different models.

    Args:
        error: Name of the exception's type.
        message: What it says.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    for pattern, by in _PARTS:
        text = pattern.sub(by, text)
    text = text.strip()
    if len(text) > LENGTH:
        text = text[: LENGTH - 1] + "…"
    return f"{error}: {text}" if text else error
