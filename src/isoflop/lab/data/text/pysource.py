"""The Python source code that comes with Python, byte by byte."""

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import DataError
from isoflop.lab.data.text.held_out import HeldOut
from isoflop.lab.data.text.language_data import LanguageData
from isoflop.lab.data.text.shuffled import ShuffledBlocks
from isoflop.lab.data.text.tokenizer import byte_tokenizer

TEST_SHARE = 0.03
"""Part of the files that is held out, chosen by their names."""

_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


def load_pysource(folder: Path | None, context: int, test_tokens: int | None) -> LanguageData:
    """Load source code: that of the standard library, or all `.py` files of a folder.

    Which files are held out depends on their names alone, and the order of the rest on nothing else
    either, so equal files make equal data. A summary has their hash.

    Args:
        folder: The folder; None for the standard library of the Python that runs, without its tests.
        context: Tokens of a block.
        test_tokens: How many tokens of held-out text are enough: whole files, until there are as
            many; None for all.

    Raises:
        DataError: There are no such files, or they are too short for a block.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. `--data DIR` takes a folder of .py files.")
    left_out = _NOT_THE_LIBRARY if folder is None else frozenset()
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if path.is_file() and not left_out & set(path.relative_to(root).parts)
    )
    if not names:
        raise DataError(f"{root} holds no .py files. `--data DIR` takes a folder of them.")
    files, digest = {}, hashlib.sha256()
    for name in names:
        files[name] = (root / name).read_bytes()
        digest.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    test: list[bytes] = []
    # In an arbitrary order, so that the first few are of all kinds.
    for name in sorted(filter(_held_out, names), key=_share):
        if test_tokens is None or sum(map(len, test)) < test_tokens:
            test.append(files[name])
    train = [files[name] for name in names if not _held_out(name)]
    if not test or not train:
        raise DataError(
            f"The {len(names)} .py files in {root} cannot be divided into training and test files, "
            f"of which about {100 * TEST_SHARE:.0f} % are held out. Give more files."
        )
    tokenizer = byte_tokenizer()
    facts = {"data_sha256": digest.hexdigest(), "data_files": len(names)}
    return LanguageData(
        source=ShuffledBlocks(_joined(train, tokenizer.end_of_text), context, facts),
        held_out=HeldOut(
            _joined(test, tokenizer.end_of_text).astype(np.int32), sum(map(len, test)), context
        ),
        tokenizer=tokenizer,
    )


def _held_out(name: str) -> bool:
    return _share(name) < TEST_SHARE


def _share(name: str) -> float:
    """Return a number from 0 to 1 that is as good as random."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def _joined(documents: Sequence[bytes], end_of_text: int) -> NDArray[np.int16]:
    """Return an end of text, then the documents, each with an end of text behind it."""
    parts = [np.array([end_of_text], dtype=np.int16)]
    for document in documents:
        parts += [np.frombuffer(document, dtype=np.uint8).astype(np.int16), parts[0]]
    return np.concatenate(parts)
