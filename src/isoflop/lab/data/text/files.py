"""Documents in files of JSON lines, Parquet or Arrow, one after another, damaged ones noted."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.errors import DataError
from isoflop.optional import require

FORMATS = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet", ".arrow")
"""What files of documents are called at the end."""

HUB = "hf:"
"""What stands before the name of a data set of the Hugging Face hub."""

_CHUNK = 2**20

Document = str | None
"""A text; None for a record that is damaged."""


def documents(path: Path, first: int) -> Iterator[tuple[Document, str]]:
    """Iterate over the records of a file: the field `text` of each, and what is wrong with it.

    Args:
        path: The file; or `hf:NAME/SPLIT`, a split of a data set of the Hugging Face hub.
        first: Number of the first record wanted. A record of JSON lines is a line.

    Yields:
        The text and nothing, or None and what is wrong.

    Raises:
        DataError: The file is not of its format, or ends too early.
    """
    if is_hub(path) or path.name.endswith((".parquet", ".arrow")):
        for record in _rows(path, first):
            yield _text(record)
        return
    for number, line in enumerate(_lines(path)):
        if number < first:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # of the characters or of the JSON
            yield None, str(error)
        else:
            yield _text(record)


def is_hub(path: Path) -> bool:
    """Return whether a path names a data set of the Hugging Face hub."""
    return str(path).startswith(HUB)


def _text(record: Any) -> tuple[Document, str]:
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        return None, "no field `text` that holds a text"
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character
        return None, str(error)
    return text, ""


def _rows(path: Path, first: int) -> Iterator[Any]:
    load = require("datasets", "text").load_dataset
    try:
        if is_hub(path):
            stream = load(str(path.parent).removeprefix(HUB), split=path.name, streaming=True)
        else:
            # A builder of `datasets` is called like the format.
            builder = path.suffix.removeprefix(".")
            stream = load(builder, data_files=[str(path)], split="train", streaming=True)
        yield from stream.skip(first)
    except (ValueError, OSError) as error:  # those of pyarrow and of the hub are among them
        raise _damaged(path, str(error)) from error


def _lines(path: Path) -> Iterator[bytes]:
    """Iterate over lines; not by `splitlines`, which also splits at bytes inside of texts."""
    rest = b""
    for chunk in _chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        if path.suffix == ".zst":
            yield from _zstandard(path)
            return
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(path, str(error)) from error


def _zstandard(path: Path) -> Iterator[bytes]:
    """Decompress frame by frame; the library's own reader takes a file cut short for a whole one."""
    zstandard = require("zstandard", "text")
    try:
        with open(path, "rb") as file:
            frame = zstandard.ZstdDecompressor().decompressobj()
            complete = False
            while chunk := file.read(_CHUNK):
                while chunk:
                    if complete:
                        frame = zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(chunk)
                    complete, chunk = frame.eof, frame.unused_data
    except zstandard.ZstdError as error:
        raise _damaged(path, str(error)) from error
    if not complete:
        raise EOFError("the last frame is not complete")


def _damaged(path: Path, why: str) -> DataError:
    if is_hub(path):
        return DataError(f"{path} cannot be read from the Hugging Face hub: {why}")
    return DataError(
        f"{path} is damaged, or was not downloaded to its end: {why}. Fetch the file again."
    )
