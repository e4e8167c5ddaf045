import pytest

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.patterns import NM, Block, Transposable, Unstructured, parse_pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Unstructured()),
        ("nm", NM(n=2, m=4)),
        ("2:4", NM(n=2, m=4)),
        ("4:8", NM(n=4, m=8)),
        ("transposable", Transposable(n=4, m=8)),
        ("1:8-T", Transposable(n=1, m=8)),
        ("16x16", Block(rows=16, columns=16)),
        ("4x1", Block(rows=4, columns=1)),
        ("4X1", Block(rows=4, columns=1)),
        ("1:8-t", Transposable(n=1, m=8)),
        ("Unstructured", Unstructured()),
        ("NM", NM(n=2, m=4)),
    ],
)
def test_forms_and_names(text, pattern):
    assert parse_pattern(text) == pattern


@pytest.mark.parametrize("text", ["", "2:4:8", "16x16-T", "2-4", "2:4t", "x4", "-2:4", "2:4 "])
def test_other_text_is_refused_with_the_known_forms(text):
    with pytest.raises(UnknownNameError, match=r"unstructured.*'16x16'.*'2:4'.*'4:8-T'"):
        parse_pattern(text)


def test_a_near_miss_gets_a_hint():
    with pytest.raises(UnknownNameError, match="Did you mean 'transposable'"):
        parse_pattern("transposible")


@pytest.mark.parametrize("text", ["4:2", "0:4", "8:8-T", "0x4"])
def test_numbers_that_make_no_sense_are_refused(text):
    with pytest.raises(IsoflopError, match="such as"):
        parse_pattern(text)
