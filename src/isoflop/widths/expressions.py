"""Exact integer expressions of widths: polynomials over named sizes, quotients and remainders."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar


class Atom:
    """A named size, or a quotient or remainder that is no polynomial.

    Args:
        name: What to call it in messages.
        value: Its value in the model as it is.
        parts: Dividend and divisor of a quotient or remainder.
    """

    __slots__ = ("name", "parts", "serial", "value")
    _count: ClassVar[int] = 0

    def __init__(
        self, name: str, value: int, parts: "tuple[Expression, Expression] | None" = None
    ) -> None:
        self.name = name
        self.value = value
        self.parts = parts
        Atom._count += 1
        self.serial = Atom._count

    @property
    def is_symbol(self) -> bool:
        """Whether this is a named size."""
        return self.parts is None

    def __repr__(self) -> str:
        return self.name if self.parts is None else f"({self.parts[0]} {self.name} {self.parts[1]})"


Monomial = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Expression:
    """A polynomial with integer coefficients.

    Attributes:
        terms: Coefficient of each product of atoms; no zeros. Atoms are sorted by age.
        value: Its value in the model as it is.
    """

    terms: frozenset[tuple[Monomial, int]]
    value: int

    @classmethod
    def constant(cls, value: int) -> "Expression":
        """Return a number as an expression."""
        return cls(frozenset({((), value)}) if value else frozenset(), value)

    @classmethod
    def of(cls, atom: Atom) -> "Expression":
        """Return a lone atom as an expression."""
        return cls(frozenset({((atom,), 1)}), atom.value)

    @property
    def is_constant(self) -> bool:
        """Whether no atom occurs."""
        return all(not monomial for monomial, _ in self.terms)

    def atoms(self) -> set[Atom]:
        """Return the atoms, not those inside of quotients."""
        return {atom for monomial, _ in self.terms for atom in monomial}

    def symbols(self) -> set[Atom]:
        """Return all named sizes, also those inside of quotients and remainders."""
        found: set[Atom] = set()
        for atom in self.atoms():
            if atom.parts is None:
                found.add(atom)
            else:
                found |= atom.parts[0].symbols() | atom.parts[1].symbols()
        return found

    def __add__(self, other: "Expression") -> "Expression":
        return _collect((*self.terms, *other.terms), self.value + other.value)

    def __neg__(self) -> "Expression":
        return Expression(frozenset((m, -c) for m, c in self.terms), -self.value)

    def __sub__(self, other: "Expression") -> "Expression":
        return self + -other

    def __mul__(self, other: "Expression") -> "Expression":
        return _collect(
            (
                (tuple(sorted((*m, *n), key=_age)) if m and n else m or n, c * d)
                for m, c in self.terms
                for n, d in other.terms
            ),
            self.value * other.value,
        )

    def divided_by(self, other: "Expression") -> "Expression | None":
        """Return the quotient if `other` divides this as a polynomial, else None."""
        if not other.terms:
            return None
        lead, divisor = max(other.terms, key=_order)
        rest, quotient = self, Expression.constant(0)
        for _ in range(len(self.terms) + 8):
            if not rest.terms:
                return quotient
            monomial, coefficient = max(rest.terms, key=_order)
            shared = _without(monomial, lead)
            if shared is None or coefficient % divisor:
                return None
            factor = _collect([(shared, coefficient // divisor)])
            quotient, rest = quotient + factor, rest - factor * other
        return None

    def shared_factor(self, *others: "Expression") -> "Expression":
        """Return what divides every term of this and of the others."""
        terms = [term for part in (self, *others) for term in part.terms]
        divisor = math.gcd(*(c for _, c in terms))
        shared: Monomial | None = None
        for monomial, _ in terms:
            shared = monomial if shared is None else _common(shared, monomial)
        # Remainders may be zero, so that nothing may be divided by them.
        return _collect([(tuple(a for a in shared or () if a.name != "%"), divisor or 1)])

    def primitive(self) -> "Expression":
        """Return the expression without the factors that all of its terms share."""
        if not self.terms:
            return self
        quotient = self.divided_by(self.shared_factor())
        return quotient if quotient is not None else self

    def substitute(self, meaning: "Callable[[Atom], Expression | None]") -> "Expression":
        """Replace atoms by expressions; `meaning` returns None for those that stay."""
        result, changed = Expression.constant(0), False
        for monomial, coefficient in self.terms:
            factor = Expression.constant(coefficient)
            for atom in monomial:
                replacement = meaning(atom)
                changed |= replacement is not None
                factor = factor * (Expression.of(atom) if replacement is None else replacement)
            result = result + factor
        return result if changed else self

    def evaluate(self, values: Mapping[Atom, int]) -> int:
        """Return the value for new values of the symbols; others keep theirs."""
        return sum(
            coefficient * math.prod(_evaluate_atom(atom, values) for atom in monomial)
            for monomial, coefficient in self.terms
        )

    def __iter__(self) -> Iterator[tuple[Monomial, int]]:
        return iter(sorted(self.terms, key=_order))

    def __repr__(self) -> str:
        def show(monomial: Monomial, coefficient: int) -> str:
            factors = [repr(atom) for atom in monomial]
            return "*".join(
                ([str(coefficient)] if coefficient != 1 or not factors else []) + factors
            )

        return " + ".join(show(m, c) for m, c in self) or "0"


def product(monomial: Monomial, coefficient: int) -> Expression:
    """Return a single term as an expression."""
    return _collect([(monomial, coefficient)])


def quotient(kind: str, dividend: Expression, divisor: Expression) -> Atom:
    """Return ``"//"`` or ``"%"`` of two expressions as an atom."""
    value = dividend.value // divisor.value if kind == "//" else dividend.value % divisor.value
    return Atom(kind, value, (dividend, divisor))


def _age(atom: Atom) -> int:
    return atom.serial


def _order(term: tuple[Monomial, int]) -> tuple[int, ...]:
    # Graded lexicographic, which makes the division below exact.
    return (len(term[0]), *(atom.serial for atom in reversed(term[0])))


def _collect(terms: object, value: int | None = None) -> Expression:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:  # type: ignore[attr-defined]
        total[monomial] = total.get(monomial, 0) + coefficient
    if value is None:
        value = sum(c * math.prod(a.value for a in m) for m, c in total.items())
    return Expression(frozenset((m, c) for m, c in total.items() if c), value)


def _without(monomial: Monomial, factor: Monomial) -> Monomial | None:
    left = list(monomial)
    for atom in factor:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def _common(one: Monomial, other: Monomial) -> Monomial:
    left, shared = list(other), []
    for atom in one:
        if atom in left:
            left.remove(atom)
            shared.append(atom)
    return tuple(shared)


def _evaluate_atom(atom: Atom, values: Mapping[Atom, int]) -> int:
    if atom.parts is None:
        return values.get(atom, atom.value)
    dividend, divisor = (part.evaluate(values) for part in atom.parts)
    return dividend // divisor if atom.name == "//" else dividend % divisor
