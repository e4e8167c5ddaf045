"""Errors by their cause: messages without what differs from model to model."""

import re

_PARTS = (
    (re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"), "…"),  # names
    (re.compile(r"[\[(][-\d,.\s×sx()\[\]]*[\])]"), "(…)"),  # shapes
    (re.compile(r"\b[\w.]*[/.][\w./]*\w\b"), "…"),  # paths, of files and of modules
    (re.compile(r"0x[0-9a-f]+|[-+]?\d[\d,.]*(e[-+]?\d+)?"), "N"),
    (re.compile(r"\b[A-Z]\w*(?:For|LM|Model|Net|Transformer|ResNet|ViT)\w*\b"), "…"),
    (re.compile(r"\s+"), " "),
)
LENGTH = 160


def cause_of(error: str, message: str) -> str:
    """Return the cause of an error, the same text for the same mistake in different models."""
    lines = message.strip().splitlines()
    text = lines[0] if lines else ""
    for pattern, by in _PARTS:
        text = pattern.sub(by, text)
    text = text.strip()
    if len(text) > LENGTH:
        text = text[: LENGTH - 1] + "…"
    return f"{error}: {text}" if text else error
