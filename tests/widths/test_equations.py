import math

import pytest

from isoflop.widths.equations import Equations
from isoflop.widths.expressions import Expression


def number(value):
    return Expression.constant(value)


class Case:
    """Symbols with given values, of which the first `weights` are sizes of parameters."""

    def __init__(self, *values, weights=None):
        self.equations = Equations()
        self.symbols = [self.equations.symbol(v, f"s{i}") for i, v in enumerate(values)]
        self.weights = self.symbols[:weights]

    def scaled(self, factor=2.0):
        """Return the values of all symbols with the free ones scaled."""
        equations = self.equations

        def widths():
            return {a for w in self.weights for a in equations.resolve(w).symbols()}

        equations.solve(widths)
        new = {atom: math.floor(atom.value * factor + 0.5) for atom in widths()}
        return [equations.resolve(s).evaluate(new) for s in self.symbols]


def test_free_widths_scale_and_equal_ones_move_together():
    case = Case(8, 8, 5)
    case.equations.equate(case.symbols[0], case.symbols[1], "here")
    assert case.scaled() == [16, 16, 10]


def test_a_constant_pins():
    case = Case(8, 8, 5)
    case.equations.equate(case.symbols[0], case.symbols[1], "here")
    case.equations.equate(case.symbols[1], number(8), "there")
    assert case.scaled() == [8, 8, 10]


def test_a_concatenation_is_the_sum_of_its_parts():
    case = Case(12, 8, 4)
    whole, one, two = case.symbols
    case.equations.equate(whole, one + two, "cat")
    assert case.scaled(1.4) == [17, 11, 6]


def test_a_sum_that_must_stay_pins_its_parts():
    case = Case(8, 4)
    case.equations.equate(case.symbols[0] + case.symbols[1], number(12), "output")
    assert case.scaled() == [8, 4]


def test_a_nonlinear_equation_with_constants_pins():
    case = Case(21, 8)
    rows = case.symbols[0]
    half = case.equations.quotient("//", number(1) + rows, number(2))
    case.equations.equate(half * half + rows, number(11 * 11 + 21), "table")
    assert case.scaled() == [21, 16]


def test_equal_halves_of_odd_and_even_places_make_a_width_even():
    case = Case(8)
    (width,) = case.symbols
    quotient = case.equations.quotient
    even, odd = quotient("//", width + number(1), number(2)), quotient("//", width, number(2))
    case.equations.equate(even, odd, "stack")
    assert case.scaled(1.6) == [12]


def test_an_equation_between_parts_of_one_width_pins_nothing():
    case = Case(12)
    (width,) = case.symbols
    third = case.equations.quotient("//", width + number(2), number(3))
    case.equations.equate(width - third - third, third, "chunk")
    assert case.scaled() == [24]


def test_the_cause_of_a_constant_is_the_equation_that_says_it():
    case = Case(8, 8, 8, 5)
    a, b, c, free = case.symbols
    case.equations.equate(a, b, "one")
    case.equations.equate(b, c, "two")
    case.equations.equate(c, number(8), "three")
    case.scaled()
    assert [getattr(case.equations.cause(s), "where", None) for s in (a, b, c)] == ["three"] * 3
    assert case.equations.cause(free) is None


@pytest.mark.parametrize(("heads", "factor", "new"), [(12, 2**0.5, 1092), (12, 2.0, 1536)])
def test_the_width_of_a_head_is_what_scales(heads, factor, new):
    case = Case(768)
    rest = case.equations.quotient("%", case.symbols[0], number(heads))
    case.equations.equate(rest, number(0), "view")
    assert case.scaled(factor) == [new]


def test_a_width_that_fits_several_times_keeps_that_number():
    case = Case(64, 16, 8)  # projection, head, and half a head as in rotary embeddings
    projection, head, half = case.symbols
    case.equations.equate(case.equations.quotient("%", projection, head), number(0), "view")
    case.equations.equate(head, number(2) * half, "rotary")
    assert case.scaled() == [128, 32, 16]


def test_coefficients_on_both_sides():
    case = Case(6, 9)
    case.equations.equate(number(3) * case.symbols[0], number(2) * case.symbols[1], "view")
    a, b = case.scaled(1.5)
    assert 3 * a == 2 * b
    assert a > 6


def test_what_no_parameter_depends_on_stays():
    case = Case(8, 5, weights=1)
    assert case.scaled() == [16, 5]


def test_quotients_simplify():
    equations = Equations()
    a, b = equations.symbol(6, "a"), equations.symbol(4, "b")
    assert equations.quotient("//", number(3) * a + number(2), number(3)) == a
    assert equations.quotient("%", number(3) * a + number(2), number(3)) == number(2)
    assert equations.quotient("//", a * b, number(1) * b) == a
    assert equations.quotient("%", a * b, b * number(1)) == number(0)
    halves = equations.quotient("//", a, number(4))
    assert halves.value == 1
    assert halves == equations.quotient("//", number(2) * a, number(8))
