"""Texts by the names that recipes give."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from isoflop.lab.data.text.language_data import LanguageData
from isoflop.lab.data.text.pile import load_pile, pile_tokenizer
from isoflop.lab.data.text.pysource import load_pysource
from isoflop.lab.data.text.tokenizer import TextTokenizer, byte_tokenizer
from isoflop.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Text:
    """A data set of text.

    Attributes:
        load: Loads it: from a folder, for a length of the context, with as many tokens of held-out
            text as are enough, or all if that is None.
        tokenizer: Returns its tokenizer alone, from the same folder.
    """

    load: Callable[[Path | None, int, int | None], LanguageData]
    tokenizer: Callable[[Path | None], TextTokenizer]


TEXTS: Registry[Text] = Registry("text")
"""Data sets of text by name."""

TEXTS.add("pysource", Text(load=load_pysource, tokenizer=lambda _: byte_tokenizer()))
TEXTS.add("pile", Text(load=load_pile, tokenizer=pile_tokenizer))
