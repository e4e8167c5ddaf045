import pytest

from isoflop.errors import IsoflopError, UnknownNameError
from isoflop.registry import Registry, names_in


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


@pytest.mark.parametrize("name", ["CIRCLE", "Circle", " circle", "c-ircle"])
def test_case_hyphens_and_spaces_make_no_difference(shapes, name):
    assert shapes.get(name) is shapes.get("circle")


def test_a_class_goes_by_its_own_name_too():
    registry: Registry = Registry("shape")
    registry.register("round")(type("Circle", (), {}))
    assert registry.get("circle") is registry.get("round")
    with pytest.raises(UnknownNameError, match="mean 'Circle'"):
        registry.get("cirkle")


def define() -> type:
    class Circle:
        pass

    return Circle


def test_a_definition_that_is_run_twice_takes_its_own_place(shapes):
    registry: Registry = Registry("shape")
    first, second = registry.register("mine")(define()), define()
    registry.register("other")(type("Other", (), {}))
    registry.register("mine")(second)
    assert registry.get("mine") is second
    assert registry.names() == ["mine", "other"]
    assert registry.name_of(first()) == "mine"  # instances of before are known still


def test_a_taken_name_is_refused(shapes):
    with pytest.raises(IsoflopError, match="shape 'circle' is registered already, as Circle"):
        shapes.register("circle")(define())
    with pytest.raises(IsoflopError, match="registered already"):
        shapes.add("square", 4)
    assert shapes.get("circle").__qualname__ == "Circle"


def test_a_string_is_one_name():
    assert names_in("stages.2", "exclude") == ("stages.2",)
    assert names_in(["a", "b"], "exclude") == ("a", "b")
    for bad in (None, 3, [3], [None]):
        with pytest.raises(IsoflopError, match="exclude must be a string or a sequence of strings"):
            names_in(bad, "exclude")
