import pytest

from isoflop.errors import UnknownNameError
from isoflop.registry import Registry


@pytest.fixture
def shapes() -> Registry:
    registry: Registry = Registry("shape")
    registry.register("circle")(type("Circle", (), {}))
    registry.register("square")(type("Square", (), {}))
    return registry


def test_finds_entries_by_name_and_names_by_entry(shapes):
    circle = shapes.get("circle")
    assert shapes.name_of(circle) == "circle"
    assert shapes.name_of(circle()) == "circle"
    assert shapes.names() == ["circle", "square"]


def test_an_unknown_name_lists_the_known_ones(shapes):
    with pytest.raises(UnknownNameError, match=r"shape 'circel'.*mean 'circle'.*circle, square"):
        shapes.get("circel")
    with pytest.raises(UnknownNameError, match="not a registered shape"):
        shapes.name_of(3)
