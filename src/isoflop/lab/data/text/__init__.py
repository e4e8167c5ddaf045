"""Text for language models: tokens packed into blocks of equal length, without padding."""

from isoflop.lab.data.text.held_out import HeldOut
from isoflop.lab.data.text.language_data import LanguageData, Source
from isoflop.lab.data.text.tokenizer import TextTokenizer

__all__ = ["HeldOut", "LanguageData", "Source", "TextTokenizer"]
