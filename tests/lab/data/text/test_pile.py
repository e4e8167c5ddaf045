from itertools import islice

import pytest
from tests.lab.conftest import json_lines, sentences

from isoflop.errors import DamagedDataWarning, DataError
from isoflop.lab.data.text.pile import load_pile


def test_files_by_their_names(pile):
    data = load_pile(pile, 16, None)
    batches = islice(data.train_batches(4, seed=0, epoch=0), 40)
    text = "".join(data.tokenizer.library.decode(x.flatten().tolist()) for x, _ in batches)
    # The separator is special, so it is left out.
    assert text.startswith("".join(sentences(60, 0)) + sentences(60, 1)[0])
    held_out = data.tokenizer.library.decode(data.held_out.tokens.tolist())
    assert held_out == "".join(sentences(20, 3))
    assert data.held_out.text_bytes == len(held_out.encode())
    assert (data.held_out.tokens == data.tokenizer.end_of_text).sum() == 21


def test_whole_documents_until_there_are_enough(pile):
    data = load_pile(pile, 16, 30)
    text = data.tokenizer.library.decode(data.held_out.tokens.tolist())
    documents = (data.held_out.tokens == data.tokenizer.end_of_text).sum() - 1
    assert text == "".join(sentences(20, 3)[:documents])
    assert 30 <= len(data.held_out.tokens) - 1 < 60
    assert data.held_out.text_bytes == len(text.encode())


def test_damaged_held_out_records_are_told(own_pile):
    (own_pile / "val.jsonl").write_bytes(b"{\n" + json_lines(sentences(5, 3)))
    with pytest.warns(DamagedDataWarning, match="Record 1 of"):
        data = load_pile(own_pile, 16, None)
    (record,) = data.skipped
    assert (record["split"], record["file"]) == ("test", "val.jsonl:1")


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("train/*", "no training text"),
        ("val*", "no held-out text"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_what_is_missing(own_pile, removed, message):
    for path in own_pile.glob(removed):
        path.unlink()
    with pytest.raises(DataError, match=message):
        load_pile(own_pile, 16, None)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"No data folder was given.*--data DIR"):
        load_pile(None, 16, None)
    with pytest.raises(DataError, match="There is no folder"):
        load_pile(tmp_path / "absent", 16, None)


def test_files_are_looked_at_before_training(own_pile):
    (own_pile / "train" / "01.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"01\.jsonl is empty"):
        load_pile(own_pile, 16, None)
    (own_pile / "train" / "01.parquet").write_bytes(b"PAR1 and no more")
    (own_pile / "train" / "01.jsonl").unlink()
    with pytest.raises(DataError, match=r"01\.parquet is damaged"):
        load_pile(own_pile, 16, None)


def test_held_out_files_without_text(own_pile):
    (own_pile / "val.jsonl").write_bytes(json_lines(["", ""]))
    with pytest.raises(DataError, match="is empty"):
        load_pile(own_pile, 16, None)
