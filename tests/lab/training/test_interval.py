import pytest

from isoflop.errors import IsoflopError
from isoflop.lab.training.interval import Interval


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("every=1epoch", Interval(1, "epoch")),
        ("every=5epochs", Interval(5, "epoch")),
        ("every=100steps", Interval(100, "step")),
    ],
)
def test_texts(text, interval):
    assert Interval.parse(text) == interval


@pytest.mark.parametrize(
    "text",
    ["", "1epoch", "every=0epochs", "every=1.5epoch", "every=epoch", "every=3", "every=²step"],
)
def test_other_texts_name_the_right_ones(text):
    with pytest.raises(IsoflopError, match="every=100steps"):
        Interval.parse(text)


def test_due():
    steps = range(1, 43)
    assert [s for s in steps if Interval(1, "epoch").due(s, 21)] == [21, 42]
    assert [s for s in steps if Interval(2, "epoch").due(s, 21)] == [42]
    assert [s for s in steps if Interval(10, "step").due(s, 21)] == [10, 20, 30, 40]
