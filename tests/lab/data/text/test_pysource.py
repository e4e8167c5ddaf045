from itertools import islice, pairwise

import numpy as np
import pytest
from tests.lab.conftest import write_python

from isoflop.errors import DataError
from isoflop.lab.data.text.pysource import load_pysource
from isoflop.lab.data.text.shuffled import ShuffledBlocks


def blocks_of(data) -> ShuffledBlocks:
    """Return the source of the data, which is in memory."""
    return data.source


def documents(tokens):
    """Return the documents between the ends of texts, which also begin the tokens."""
    assert tokens[0] == tokens[-1] == 256
    ends = np.flatnonzero(tokens == 256)
    return [bytes(tokens[a + 1 : b].tolist()) for a, b in pairwise(ends)]


def test_files_are_divided_by_their_names(python_files):
    data = load_pysource(python_files, 16, None)
    train, test = documents(blocks_of(data)._tokens), documents(data.held_out.tokens)
    contents = {path.read_bytes() for path in python_files.rglob("*.py")}
    assert {*train, *test} == contents
    assert len(train) + len(test) == len(contents)
    assert 1 <= len(test) <= 0.1 * len(contents)
    assert data.held_out.text_bytes == sum(map(len, test))


def test_equal_files_are_equal_data(python_files, tmp_path):
    one = load_pysource(python_files, 16, None)
    other = load_pysource(write_python(tmp_path), 16, None)
    assert one.facts() == other.facts()
    assert one.facts()["data_files"] == 120
    other.load_state_dict(one.state_dict())
    (tmp_path / "package0" / "module0.py").write_text("changed = True\n")
    changed = load_pysource(tmp_path, 16, None)
    with pytest.raises(DataError, match="other text"):
        changed.load_state_dict(one.state_dict())


def test_enough_held_out_text(python_files):
    everything = documents(load_pysource(python_files, 16, None).held_out.tokens)
    some = documents(load_pysource(python_files, 16, 1).held_out.tokens)
    assert some == everything[:1]


def test_every_pass_has_every_block_once_in_another_order(python_files):
    source = blocks_of(load_pysource(python_files, 16, None))
    count = source._count
    blocks = [batch for batch, _ in islice(source.batches(source.start, 1, 0), 3 * count)]
    passes = [np.concatenate(blocks[i * count : (i + 1) * count]) for i in range(3)]
    tokens = source._tokens
    expected = sorted(tokens[i * 16 : (i + 1) * 16 + 1].tolist() for i in range(count))
    assert all(sorted(one.tolist()) == expected for one in passes)
    assert not np.array_equal(passes[0], passes[1])
    other_seed = next(iter(source.batches(source.start, count, 1)))[0]
    assert not np.array_equal(passes[0], other_seed)


def test_the_standard_library_is_there():
    facts = load_pysource(None, 256, 2**12).facts()
    assert facts["data_files"] > 300


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        load_pysource(tmp_path / "absent", 16, None)
    (tmp_path / "notes.txt").write_text("no code")
    with pytest.raises(DataError, match=r"no \.py files"):
        load_pysource(tmp_path, 16, None)
    (tmp_path / "one.py").write_text("x = 1\n")
    with pytest.raises(DataError, match="cannot be divided"):
        load_pysource(tmp_path, 16, None)


def test_text_shorter_than_a_block(python_files):
    with pytest.raises(DataError, match="too few for one block of the context 1000000"):
        load_pysource(python_files, 10**6, None)
