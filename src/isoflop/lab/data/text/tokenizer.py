"""Tokenizers: bytes, or the files of one that was trained elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import DataError
from isoflop.optional import require

END_OF_TEXT = "<|endoftext|>"
"""The token between two documents, as GPT-2 calls it."""

HUB_TOKENIZER = "openai-community/gpt2"

BYTES_VOCABULARY = 257
"""The bytes, then the end of a text."""


@dataclass(frozen=True)
class TextTokenizer:
    """Turns documents into tokens.

    Attributes:
        library: The tokenizer of the library `tokenizers`.
        end_of_text: Number of the token that ends a document.
    """

    library: Any
    end_of_text: int

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.library.get_vocab_size()

    def documents(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the tokens of each text, with the end of text behind them."""
        encodings = self.library.encode_batch(list(texts), add_special_tokens=False)
        return [np.array([*e.ids, self.end_of_text], dtype=np.int32) for e in encodings]

    def for_transformers(self) -> Any:
        """Return it as a `transformers.PreTrainedTokenizerFast`."""
        kind = require("transformers", "text").PreTrainedTokenizerFast
        return kind(
            tokenizer_object=self.library, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
        )


def byte_tokenizer() -> TextTokenizer:
    """Return the tokenizer whose tokens are the bytes of UTF-8: byte `b` is token `b`."""
    library = require("tokenizers", "text")
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    vocabulary[END_OF_TEXT] = BYTES_VOCABULARY - 1
    tokenizer = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=[]))
    levels = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = levels
    tokenizer.decoder = library.decoders.ByteLevel()
    return _finished(tokenizer)


def load_tokenizer(folder: Path) -> TextTokenizer:
    """Return the tokenizer in a folder: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
        DataError: There is none, it cannot be read, or it lacks the token for the end of a text.
    """
    library = require("tokenizers", "text")
    whole, vocabulary, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    hint = (
        "Put the tokenizer of the model there, for GPT models that of GPT-2: tokenizer.json, or "
        "vocab.json and merges.txt."
    )
    try:
        if whole.is_file():
            tokenizer = library.Tokenizer.from_file(str(whole))
        elif vocabulary.is_file() and merges.is_file():
            model = library.models.BPE.from_file(str(vocabulary), str(merges))
            tokenizer = library.Tokenizer(model)
            levels = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.pre_tokenizer = levels
            tokenizer.decoder = library.decoders.ByteLevel()
        else:
            raise DataError(f"{folder} holds no tokenizer. {hint}")
    except DataError:
        raise
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"The tokenizer in {folder} cannot be read: {error}. {hint}") from error
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise DataError(
            f"The tokenizer in {folder} has no token {END_OF_TEXT} to end a document with. {hint}"
        )
    return _finished(tokenizer)


def hub_tokenizer() -> TextTokenizer:
    """Return the tokenizer of GPT-2 from the Hugging Face hub.

    Raises:
        DataError: The hub cannot be reached.
    """
    try:
        tokenizer = require("tokenizers", "text").Tokenizer.from_pretrained(HUB_TOKENIZER)
    except Exception as error:  # the library raises nothing more specific
        raise DataError(
            f"The tokenizer {HUB_TOKENIZER} cannot be fetched from the Hugging Face hub: {error}. Give "
            "a folder that holds text and tokenizer: `--data DIR`."
        ) from error
    return _finished(tokenizer)


def _finished(tokenizer: Any) -> TextTokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.add_special_tokens([END_OF_TEXT])  # a no-op where the vocabulary has it already
    # Where a document spells that token out, it is text like any other.
    tokenizer.encode_special_tokens = True
    return TextTokenizer(tokenizer, tokenizer.token_to_id(END_OF_TEXT))


def _byte_characters() -> list[str]:
    """Return the printable characters that byte-level tokenizers write bytes with (GPT-2's)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
