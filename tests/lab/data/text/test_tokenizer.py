import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import DataError
from isoflop.lab.data.text.tokenizer import END_OF_TEXT, byte_tokenizer, load_tokenizer


@given(st.text())
def test_bytes_are_the_tokens(text):
    (tokens,) = byte_tokenizer().documents([text])
    assert tokens.tolist() == [*text.encode(), 256]


def test_byte_tokenizer_of_transformers():
    tokenizer = byte_tokenizer().for_transformers()
    text = "def f(x):  # é\n\treturn 'a  b'"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 257
    assert tokenizer.eos_token_id == 256


def test_end_of_text_in_a_text_is_text(pile):
    for tokenizer in (byte_tokenizer(), load_tokenizer(pile)):
        (tokens,) = tokenizer.documents([f"a{END_OF_TEXT}b"])
        assert list(tokens).count(tokenizer.end_of_text) == 1
        assert tokens[-1] == tokenizer.end_of_text


def test_the_two_forms_of_files_agree(pile, tmp_path):
    whole = load_tokenizer(pile)
    model = json.loads((pile / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    parts = load_tokenizer(tmp_path)
    assert parts.vocab_size == whole.vocab_size == 300
    texts = ["def self.value: return é", "", " x  y"]
    for one, other in zip(parts.documents(texts), whole.documents(texts), strict=True):
        assert one.tolist() == other.tolist()


def test_missing_and_damaged_files(pile, tmp_path):
    with pytest.raises(DataError, match=r"holds no tokenizer\..* tokenizer\.json"):
        load_tokenizer(tmp_path)
    whole = (pile / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole.replace("<|endoftext|>", "<end>"))
    with pytest.raises(DataError, match=r"no token <\|endoftext\|>"):
        load_tokenizer(tmp_path)
