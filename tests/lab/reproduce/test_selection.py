import pytest

from isoflop.errors import IsoflopError
from isoflop.lab.reproduce import TABLES, get_preset
from isoflop.lab.reproduce.selection import select_rows

ROWS = TABLES.get("table2")(get_preset("full")).rows


def chosen(*only):
    return [(row.labels["method"], row.labels.get("sparsity")) for row in select_rows(ROWS, only)]


def test_rows():
    assert len(chosen()) == 22
    assert chosen("method=rigl", "sparsity=0.90") == [("rigl", 0.9)]
    assert chosen("method=rigl", "method=set", "sparsity=.5") == [("set", 0.5), ("rigl", 0.5)]
    assert chosen("method=dense") == [("dense", None)]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("rigl", "LABEL=VALUE, with a label of this table: method, sparsity"),
        ("model=resnet18", "method, sparsity"),
        ("method=rigle", "Values of method: dense, static, snip"),
        ("sparsity=0.8", "Values of sparsity: 0.5, 0.75, 0.9"),
    ],
)
def test_mistakes(only, message):
    with pytest.raises(IsoflopError, match=message):
        select_rows(ROWS, [only])


def test_nothing_left():
    with pytest.raises(IsoflopError, match="No row of this table has method=dense and sparsity"):
        select_rows(ROWS, ["method=dense", "sparsity=0.9"])


def test_case_makes_no_difference_and_a_string_is_one_choice():
    assert chosen("Method=RigL", "sparsity=0.9") == [("rigl", 0.9)]
    assert len(select_rows(ROWS, "method=dense")) == 1
