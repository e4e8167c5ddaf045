"""The Pile, or any other text in files of its formats."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from isoflop.errors import DataError
from isoflop.lab.data.text.files import FORMATS, documents, is_hub
from isoflop.lab.data.text.held_out import HeldOut
from isoflop.lab.data.text.language_data import LanguageData
from isoflop.lab.data.text.stream import AT_A_TIME, PackedStream, check_damaged
from isoflop.lab.data.text.tokenizer import TextTokenizer, hub_tokenizer, load_tokenizer

HINT = (
    "It needs a folder of text files (names that end in "
    f"{', '.join(FORMATS)}, the text in a field `text`), of which those whose names or folders begin "
    "with `val` are held out, those with `test` ignored, and the tokenizer (tokenizer.json, or "
    "vocab.json and merges.txt): `--data DIR`. `--data hf:NAME` reads a data set of the Hugging Face "
    "hub instead, with the tokenizer of GPT-2."
)


def load_pile(folder: Path | None, context: int, test_tokens: int | None) -> LanguageData:
    """Load text that is read while training goes on, in the order of the files' names.

    Args:
        folder: Where files and tokenizer are; or `hf:NAME`, a data set of the Hugging Face hub with
            the splits `train` and `validation`, which is read over the network.
        context: Tokens of a block.
        test_tokens: How many tokens of held-out text are enough: whole documents, until there are as
            many; None for all.

    Raises:
        DataError: Files or tokenizer are missing or damaged.
    """
    if folder is None:
        raise DataError(f"No data folder was given. {HINT}")
    train, test = (["train"], ["validation"]) if is_hub(folder) else _split(folder)
    tokenizer = pile_tokenizer(folder)
    for name in [*train, *test]:
        if next(documents(folder / name, 0), None) is None:
            raise DataError(f"{folder / name} is empty. Fetch the file again.")
    return LanguageData(
        source=PackedStream(folder, train, tokenizer, context),
        held_out=_read_held_out(folder, test, tokenizer, context, test_tokens),
        tokenizer=tokenizer,
    )


def pile_tokenizer(folder: Path | None) -> TextTokenizer:
    """Return the tokenizer in the folder of a text, or GPT-2's for a text of the hub.

    Raises:
        DataError: There is none.
    """
    if folder is None:
        raise DataError(f"No data folder was given. {HINT}")
    return hub_tokenizer() if is_hub(folder) else load_tokenizer(folder)


def _split(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the files to train on and of those held out."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. {HINT}")
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.endswith(FORMATS) and path.is_file()
    )
    test = [name for name in names if _begins(name, "val")]
    train = [name for name in names if not _begins(name, "val") and not _begins(name, "test")]
    if not train or not test:
        lacking = "training" if not train else "held-out"
        raise DataError(f"{folder} holds no {lacking} text. {HINT}")
    return train, test


def _begins(name: str, word: str) -> bool:
    return any(part.startswith(word) for part in PurePosixPath(name).parts)


def _read_held_out(
    folder: Path,
    names: Sequence[str],
    tokenizer: TextTokenizer,
    context: int,
    enough: int | None,
) -> HeldOut:
    parts = [np.array([tokenizer.end_of_text], dtype=np.int32)]
    tokens = text_bytes = 0
    skipped: list[dict[str, str]] = []
    texts = _texts(folder, names, skipped)
    while (enough is None or tokens < enough) and (group := list(islice(texts, AT_A_TIME))):
        for text, document in zip(group, tokenizer.documents(group), strict=True):
            if enough is not None and tokens >= enough:
                break
            parts.append(document)
            tokens += len(document)
            text_bytes += len(text.encode())
    if not text_bytes:
        raise DataError(f"The held-out text in {folder} ({', '.join(names)}) is empty.")
    return HeldOut(np.concatenate(parts), text_bytes, context, skipped)


def _texts(folder: Path, names: Sequence[str], skipped: list[dict[str, str]]) -> Iterator[str]:
    """Iterate over the texts of files, and note the records that are damaged."""
    for name in names:
        of_file = 0
        for record, (text, why) in enumerate(documents(folder / name, 0)):
            if text is not None:
                yield text
                continue
            of_file += 1
            place = f"{name}:{record + 1}"
            skipped.append({"split": "test", "file": place, "reason": why})
            check_damaged(folder / name, of_file, record, why)
