import pytest
from tools.zoo.causes import LENGTH, cause_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "The output width of 'layer1.0.conv1.weight' (Conv2d, shape (64, 3, 7, 7)) stays.",
            "The output width of 'stem.weight' (Conv2d, shape (24, 3, 4, 4)) stays.",
        ),
        ("size of tensor a (64) must match b (128)", "size of tensor a (8) must match b (16)"),
        ("dense parts cost 1,234 of 56.7 MACs", "dense parts cost 9 of 1.0e+03 MACs"),
        ("failed in /usr/lib/python3/a.py:12", "failed in /home/me/b.py:7"),
    ],
)
def test_the_same_mistake_is_one_cause(one, other):
    assert cause_of("ValueError", one) == cause_of("ValueError", other)
    assert cause_of("ValueError", one).startswith("ValueError: ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The input width of 'a' stays.", "The output width of 'a' stays."),
        ("(Linear, shape (3, 4)) stays", "(Conv2d, shape (3, 4)) stays"),
        ("aten.nonzero.default", "aten._local_scalar_dense.default"),
    ],
)
def test_different_mistakes_are_different_causes(one, other):
    assert cause_of("ValueError", one) != cause_of("ValueError", other)


def test_an_untraceable_model_is_grouped_by_what_it_did():
    text = (
        "GPT2Model cannot be traced with example inputs of shapes [(1, 20)]: module 'h.0' "
        "(Block), `x.item()` in model.py:3 raised RuntimeError: no symbols here. Pass example_inputs …"
    )
    assert cause_of("InputError", text) == (
        "InputError: cannot be traced: RuntimeError: no symbols here"
    )


def test_a_heading_takes_the_next_line_with_it_and_the_rest_is_left_out():
    assert cause_of("E", "Class validation error:\n    ValueError: bad\n more") == (
        "E: Class validation error: ValueError: bad"
    )
    assert cause_of("E", "first\nsecond") == "E: first"
    assert cause_of("E", "") == "E"
    assert len(cause_of("E", "word " * 500)) <= LENGTH + len("E: ")
