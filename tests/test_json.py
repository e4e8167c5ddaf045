import json
import math

import pytest

from isoflop.files import read_json, to_json, write_json, write_lines

DATA = {"a": [1.5, math.inf, (math.nan, 2)], "b": {"c": -math.inf, "d": None, "e": "inf"}}
PLAIN = {"a": [1.5, None, [None, 2]], "b": {"c": None, "d": None, "e": "inf"}}


def strict(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_files_are_json_whatever_the_numbers(tmp_path):
    write_json(tmp_path / "a.json", DATA)
    write_lines(tmp_path / "a.jsonl", [DATA, DATA])
    assert read_json(tmp_path / "a.json") == PLAIN
    for text in (
        (tmp_path / "a.json").read_text(),
        *(tmp_path / "a.jsonl").read_text().splitlines(),
    ):
        assert json.loads(text, parse_constant=strict) == PLAIN


@pytest.mark.parametrize("value", [1, "a", True, None, [], {}, 0.5])
def test_all_else_is_as_it_was(value):
    assert json.loads(to_json(value)) == value
