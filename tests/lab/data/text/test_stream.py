import json
from itertools import islice

import numpy as np
import pytest
from tests.lab.conftest import json_lines

from isoflop.errors import DamagedDataWarning, DataError
from isoflop.lab.data.text.stream import PackedStream
from isoflop.lab.data.text.tokenizer import byte_tokenizer

CONTEXT = 10


def stream(folder, **files):
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_bytes(
            lines if isinstance(lines, bytes) else json_lines(lines)
        )
    return PackedStream(folder, [f"{n}.jsonl" for n in files], byte_tokenizer(), CONTEXT)


def of_passes(texts, count):
    """Return the tokens of all texts, `count` times over."""
    tokens = [token for text in texts for token in [*text.encode(), 256]]
    return np.array(tokens * count)


A = ["def f(x):", "", "y" * 35, "a", "b"]
B = ["class C:", "  pass" * 3]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_blocks_hold_every_token_once_and_go_on_for_ever(tmp_path, batch_size):
    source = stream(tmp_path, a=A, b=B)
    tokens = of_passes(A + B, 8)
    batches = islice(
        source.batches(source.start, batch_size, 0), len(tokens) // (10 * batch_size) - 1
    )
    blocks = np.concatenate([batch for batch, _ in batches])
    assert blocks.shape[1] == CONTEXT + 1
    assert blocks.dtype == np.int32
    for i, block in enumerate(blocks):
        assert block.tolist() == tokens[i * CONTEXT : (i + 1) * CONTEXT + 1].tolist()


def test_every_position_is_a_place_to_go_on(tmp_path):
    source = stream(tmp_path, a=A, b=B)
    batches = list(islice(source.batches(source.start, 2, 0), 12))
    positions = [source.start, *(position for _, position in batches)]
    assert positions[-1][0] >= 1  # a second pass has begun
    for i, position in enumerate(positions[:-1]):
        batch, after = next(iter(source.batches(position, 2, 0)))
        assert np.array_equal(batch, batches[i][0])
        assert after == batches[i][1]


def test_groups_of_documents_make_no_difference(tmp_path, monkeypatch):
    source = stream(tmp_path, a=A, b=B)
    expected = [b.tolist() for b, _ in islice(source.batches(source.start, 2, 0), 9)]
    monkeypatch.setattr("isoflop.lab.data.text.stream.AT_A_TIME", 2)
    assert [b.tolist() for b, _ in islice(source.batches(source.start, 2, 0), 9)] == expected


def test_damaged_records_are_left_out_and_told(tmp_path):
    broken = b'{"text": "abcdefgh"}\n{"text": \n{"text": "ijklmnop"}\n'
    source = stream(tmp_path, a=broken, b=B)
    with pytest.warns(DamagedDataWarning, match=r"Record 2 of .*a\.jsonl is left out"):
        batches = list(islice(source.batches(source.start, 1, 0), 9))
    tokens = of_passes(["abcdefgh", "ijklmnop", *B], 4)
    assert batches[1][0][0].tolist() == tokens[10:21].tolist()
    # Nothing is said of what lies behind a position, though it has been read ahead.
    assert source.skipped(source.start) == []
    assert source.facts(batches[-1][1])["data_passes"] >= 1
    for _, position in batches:
        (record,) = source.skipped(position)
        assert (record["split"], record["file"]) == ("train", "a.jsonl:2")
        assert record["reason"].startswith("Expecting value")
    # The state takes it along, and it is not counted again.
    state = json.loads(json.dumps(source.state_dict(batches[1][1])))
    other = stream(tmp_path, a=broken, b=B)
    other.load_state_dict(state)
    assert other.skipped(batches[1][1]) == source.skipped(batches[1][1])


def test_too_many_damaged_records(tmp_path):
    source = stream(tmp_path, a=b"no json\n" * 50 + json_lines(A))
    with (
        pytest.warns(DamagedDataWarning),
        pytest.raises(DataError, match="11 of the first 11 records"),
    ):
        next(iter(source.batches(source.start, 1, 0)))


def test_too_little_text(tmp_path):
    source = stream(tmp_path, a=["abc", "def"])
    with pytest.raises(DataError, match="hold 8 tokens, too few for one block of the context 10"):
        next(iter(source.batches(source.start, 1, 0)))
    source = stream(tmp_path, a=b"")
    with pytest.raises(DataError, match="not one document"):
        next(iter(source.batches(source.start, 1, 0)))


def test_other_files_than_before(tmp_path):
    state = stream(tmp_path, a=A, b=B).state_dict((0, 0, 1, 0))
    with pytest.raises(DataError, match=r"other files \(a\.jsonl\) .* \(a\.jsonl, b\.jsonl\)"):
        stream(tmp_path, a=A).load_state_dict(state)
