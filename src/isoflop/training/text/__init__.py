"""Text for language models: tokens packed into blocks of equal length, without padding."""

from isoflop.training.text.held_out import HeldOut
from isoflop.training.text.language_data import LanguageData, Source
from isoflop.training.text.tokenizer import TextTokenizer

__all__ = ["HeldOut", "LanguageData", "Source", "TextTokenizer"]
