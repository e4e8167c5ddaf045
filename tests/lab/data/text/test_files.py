import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from isoflop.errors import DataError
from isoflop.lab.data.text.files import documents

# Characters that other ways of splitting lines, and other codes than UTF-8, trip over.
TEXTS = ["one", "", "two\nlines", "a\u2028b\x85c\r\u00e9", "last"]


def write(path, texts=TEXTS):
    lines = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode()
    table = pyarrow.table({"text": texts, "meta": [1] * len(texts)})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".arrow":
        with (
            pyarrow.OSFile(str(path), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table)
    elif path.suffix == ".zst":
        # Two frames, as parallel compressors write them.
        compressor = zstandard.ZstdCompressor()
        path.write_bytes(compressor.compress(lines[:10]) + compressor.compress(lines[10:]))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    else:
        path.write_bytes(lines)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet", ".arrow"])
@pytest.mark.parametrize("first", [0, 2, 5])
def test_every_format(tmp_path, ending, first):
    path = write(tmp_path / f"a{ending}")
    assert list(documents(path, first)) == [(text, "") for text in TEXTS[first:]]


def test_damaged_lines_keep_their_place(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}', b'{"text": "cut', b"", b'{"text": "\xff"}', b'{"no": "text"}',
        b'{"text": 3}', b"[1]", b'{"text": "\\ud800"}', b'{"text": "good"}', b'{"text": "the e',
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    found = list(documents(path, 0))
    assert [text for text, _ in found] == ["good", *[None] * 7, "good", None]
    assert all(bool(why) == (text is None) for text, why in found)
    assert "utf-8" in found[3][1]
    assert "no field `text`" in found[4][1]
    assert list(documents(path, 8)) == found[8:]


@pytest.mark.parametrize("ending", [".jsonl.zst", ".jsonl.gz", ".parquet"])
def test_files_that_are_cut_short(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", [f"text {i * i}" for i in range(5000)])
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"a\..* is damaged, or was not downloaded"):
            list(documents(path, 0))


@pytest.mark.parametrize("ending", [".jsonl.zst", ".jsonl.gz", ".parquet", ".arrow"])
def test_files_of_another_format(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"<html>Not found</html>" * 100)
    with pytest.raises(DataError, match="Fetch the file again"):
        list(documents(path, 0))


def test_a_split_of_the_hub_is_asked_for_by_name(monkeypatch, tmp_path):
    import datasets

    asked = []

    def load(*args, **options):
        asked.append((args, options))
        if options["split"] == "test":
            raise ConnectionError("no network")
        return datasets.Dataset.from_dict({"text": ["a", "b", "c"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(documents(Path("hf:somebody/text") / "train", 1)) == [("b", ""), ("c", "")]
    assert asked == [(("somebody/text",), {"split": "train", "streaming": True})]
    with pytest.raises(DataError, match="hub: no network"):
        list(documents(Path("hf:somebody/text/test"), 0))
