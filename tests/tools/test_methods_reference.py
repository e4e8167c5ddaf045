from pathlib import Path

import pytest
from tools.methods_reference import markdown

import isoflop
from isoflop.methods.base import METHODS

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_reference_is_up_to_date():
    assert DOCS.read_text() == markdown(), "python -m tools.methods_reference > docs/methods.md"


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_is_public_and_says_where_it_comes_from(name):
    cls = METHODS.get(name)
    assert getattr(isoflop, cls.__name__) is cls
    assert f"\n## {name}\n" in markdown()
    doc = cls.__doc__
    assert doc is not None
    for part in ("Formula:", "Cost:", "Source:"):
        assert part in doc
    assert "arxiv.org" in doc or name == "dense"
