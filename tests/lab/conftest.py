"""Small texts, and recipes of language models that train on them in about a second."""

import dataclasses
import gzip
import json
import random
from pathlib import Path

import pytest
import tokenizers
import zstandard

from isoflop.lab.data.text.tokenizer import END_OF_TEXT
from isoflop.lab.recipes import get_recipe

WORDS = (
    "def", "return", "self", "class", "import", "for", "in", "if", "else", "not", "None", "x", "y"
)  # fmt: skip


def write_python(folder: Path, count: int = 120) -> Path:
    """Write short modules, of which a few will be held out."""
    draw = random.Random(0)
    for i in range(count):
        path = folder / f"package{i % 3}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(draw.choices(WORDS, k=40)) + f"\n# é {i}\n")
    return folder


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"Text {i}: " + " ".join(draw.choices(WORDS, k=i % 23)) for i in range(count)]


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": t, "meta": {}}) + "\n" for t in texts).encode()


def write_pile(folder: Path) -> Path:
    """Write three training files, one held-out file, one to be ignored, and a tokenizer."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    texts = [sentences(60, seed) for seed in range(3)]
    compressed = zstandard.ZstdCompressor().compress(json_lines(texts[0]))
    (folder / "train" / "00.jsonl.zst").write_bytes(compressed)
    (folder / "train" / "01.jsonl").write_bytes(json_lines(texts[1]))
    with gzip.open(folder / "train" / "02.jsonl.gz", "wb") as file:
        file.write(json_lines(texts[2]))
    (folder / "val.jsonl").write_bytes(json_lines(sentences(20, 3)))
    (folder / "test.jsonl").write_bytes(b"not read")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for part in texts for text in part], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def python_files(tmp_path_factory):
    """A folder of Python files."""
    return write_python(tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="session")
def pile(tmp_path_factory):
    """A folder of the form of the Pile; not to be changed."""
    return write_pile(tmp_path_factory.mktemp("pile"))


@pytest.fixture
def own_pile(tmp_path):
    """A folder of the form of the Pile, to be changed."""
    return write_pile(tmp_path / "pile")


@pytest.fixture
def tiny_language():
    """Recipe for six steps, in three epochs, on `python_files`."""
    changes = {"base_width": 32, "input_shape": (16,), "batch_size": 8, "epochs": 3}
    changes |= {"tokens": 6 * 8 * 16, "warmup_tokens": 2 * 8 * 16, "update_every": 2}
    changes |= {"end_fraction": 1.0, "test_tokens": 100}
    # Not `Recipe.replace`: what that is given must suit the method.
    return dataclasses.replace(get_recipe("pysource"), **changes)


@pytest.fixture
def tiny_pile(tiny_language):
    """The same on `pile`."""
    return tiny_language.replace(name="pile", dataset="pile", num_classes=300)
