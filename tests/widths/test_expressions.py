from hypothesis import given
from hypothesis import strategies as st

from isoflop.widths.expressions import Atom, Expression, product

A, B, C = Atom("a", 6), Atom("b", 4), Atom("c", 3)
VALUES = {A: 12, B: 7, C: 5}

terms = st.lists(
    st.tuples(st.lists(st.sampled_from([A, B, C]), max_size=2), st.integers(-4, 4)), max_size=4
)


def build(parts) -> Expression:
    total = Expression.constant(0)
    for atoms, coefficient in parts:
        monomial = tuple(sorted(atoms, key=lambda atom: atom.serial))
        total = total + product(monomial, coefficient)
    return total


@given(terms, terms)
def test_arithmetic_is_that_of_the_values(one, two):
    x, y = build(one), build(two)
    for result, new in ((x + y, "+"), (x - y, "-"), (x * y, "*")):
        a, b = x.evaluate(VALUES), y.evaluate(VALUES)
        assert result.evaluate(VALUES) == {"+": a + b, "-": a - b, "*": a * b}[new]
        assert result.value == result.evaluate({})


@given(terms, terms)
def test_a_product_divides_exactly(one, two):
    x, y = build(one), build(two)
    if y.terms:
        assert (x * y).divided_by(y) == x


def test_no_quotient_where_there_is_a_rest():
    a, b = Expression.of(A), Expression.of(B)
    assert (a * b + Expression.constant(1)).divided_by(b) is None
    assert a.divided_by(Expression.constant(4)) is None
    assert a.divided_by(Expression.constant(0)) is None


def test_equal_expressions_are_equal_however_they_are_made():
    a, b = Expression.of(A), Expression.of(B)
    assert (a + b) * (a + b) == a * a + Expression.constant(2) * a * b + b * b
    assert (a - a).is_constant


def test_primitive_drops_what_all_terms_share():
    a, b, c = (Expression.of(atom) for atom in (A, B, C))
    six, four = Expression.constant(6), Expression.constant(4)
    assert (six * a * b - four * a * c).primitive() == Expression.constant(
        3
    ) * b - Expression.constant(2) * c
