"""The equations between widths that a forward pass shows, and their solution."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from isoflop.widths.expressions import Atom, Expression, product, quotient

Strategy = Callable[[Expression], bool]
"""Defines a symbol so that a difference vanishes, or becomes simpler; tells whether it did."""


@dataclass(frozen=True)
class Equation:
    """Two expressions that must be equal.

    Attributes:
        left: One of them.
        right: The other.
        where: What found them equal: module path and operation.
    """

    left: Expression
    right: Expression
    where: str

    def __str__(self) -> str:
        return f"{self.left} = {self.right} ({self.left.value}) in {self.where}"


class Equations:
    """A growing set of equations between symbols."""

    def __init__(self) -> None:
        self.recorded: dict[tuple[Expression, Expression], Equation] = {}
        self.definitions: dict[Atom, Expression] = {}
        self._quotients: dict[tuple[str, Expression, Expression], Expression] = {}
        self._origins: dict[Atom, tuple[Expression, Equation | None]] = {}
        self._current: Equation | None = None

    def symbol(self, value: int, name: str) -> Expression:
        """Return a fresh size of the given value."""
        return Expression.of(Atom(name, value))

    def quotient(self, kind: str, dividend: Expression, divisor: Expression) -> Expression:
        """Return `dividend // divisor` or `dividend % divisor`, simplified where it divides."""
        if dividend.is_constant and divisor.is_constant:
            a, b = dividend.value, divisor.value
            return Expression.constant(a // b if kind == "//" else a % b)
        exact = dividend.divided_by(divisor)
        if exact is not None:
            return exact if kind == "//" else Expression.constant(0)
        shared = dividend.shared_factor(divisor)
        if not shared.is_constant or shared.value > 1:
            inner = [part.divided_by(shared) for part in (dividend, divisor)]
            if inner[0] is not None and inner[1] is not None:
                result = self.quotient(kind, inner[0], inner[1])
                return result if kind == "//" else shared * result
        # Terms that divide leave the quotient exactly: (3 a + 2) // 3 = a + 2 // 3.
        for monomial, coefficient in dividend.terms:
            term = product(monomial, coefficient)
            exact = term.divided_by(divisor)
            if exact is not None:
                rest = self.quotient(kind, dividend - term, divisor)
                return rest + exact if kind == "//" else rest
        key = (kind, dividend, divisor)
        if key not in self._quotients:
            self._quotients[key] = Expression.of(quotient(kind, dividend, divisor))
        return self._quotients[key]

    def equate(self, left: Expression, right: Expression, where: str) -> None:
        """Record that two expressions, equal in the model as it is, must stay so."""
        if left != right:
            self.recorded.setdefault((left, right), Equation(left, right, where))

    def resolve(self, expression: Expression) -> Expression:
        """Replace all symbols that have a definition."""
        return expression.substitute(self._meaning)

    def _meaning(self, atom: Atom) -> Expression | None:
        if atom.parts is not None:
            dividend, divisor = (self.resolve(part) for part in atom.parts)
            if (dividend, divisor) == atom.parts:
                return None
            return self.quotient(atom.name, dividend, divisor)
        definition = self.definitions.get(atom)
        if definition is None:
            return None
        resolved = self.resolve(definition)
        self.definitions[atom] = resolved
        return resolved

    def _define(self, atom: Atom, expression: Expression) -> None:
        self.definitions[atom] = expression
        self._origins[atom] = (expression, self._current)

    def cause(self, expression: Expression) -> Equation | None:
        """Return the equation that pins an expression which turned out to be constant."""
        waiting, seen = list(expression.symbols()), set()
        waiting.sort(key=lambda atom: atom.serial)
        while waiting:
            atom = waiting.pop(0)
            if atom in seen or atom not in self._origins:
                continue
            seen.add(atom)
            definition, equation = self._origins[atom]
            if definition.is_constant:
                return equation
            waiting += sorted(definition.symbols(), key=lambda atom: atom.serial)
        return None

    def solve(self, widths: Callable[[], set[Atom]]) -> None:
        """Turn the equations into definitions of symbols by others.

        What remains unsolved is left for the check of the final values.

        Args:
            widths: Returns the symbols that the sizes of parameters depend on, as far as is known.
        """
        pending = list(self.recorded.values())
        careful = (self._divide, self._isolate, self._balance)
        pending = self._solve(pending, careful)
        known = widths()
        self._current = None
        for equation in pending:
            for side in (equation.left, equation.right):
                for atom in self.resolve(side).symbols() - known:
                    self._define(atom, Expression.constant(atom.value))
        # What pins widths comes last: another equation may explain the same without a constant.
        last = (self._pin_sum, self._pin_lone)
        for strategies in (careful, (*careful, self._exact_quotient), (*careful, *last)):
            pending = self._solve(pending, strategies)

    def _solve(self, pending: list[Equation], strategies: tuple[Strategy, ...]) -> list[Equation]:
        while pending:
            left = [equation for equation in pending if not self._use(equation, strategies)]
            if len(left) == len(pending):
                break
            pending = left
        return pending

    def _use(self, equation: Equation, strategies: tuple[Strategy, ...]) -> bool:
        """Learn from an equation; return whether it has nothing more to say."""
        self._current = equation
        difference = (self.resolve(equation.left) - self.resolve(equation.right)).primitive()
        while difference.terms:
            if not any(strategy(difference) for strategy in strategies):
                return False
            before, difference = difference, self.resolve(difference).primitive()
            if difference == before:
                return False
        return True

    def _exact_quotient(self, difference: Expression) -> bool:
        """Take a quotient without remainder for an exact one."""
        for atom, dividend, divisor in _quotients(difference):
            if atom.name == "//" and divisor.value * atom.value == dividend.value:
                return self._make_divisible(dividend, divisor)
        return False

    def _pin_sum(self, difference: Expression) -> bool:
        """A sum of widths that must stay pins every one of them."""
        if not _is_fixed_sum(difference):
            return False
        for atom in difference.symbols():
            self._define(atom, Expression.constant(atom.value))
        return True

    def _pin_lone(self, difference: Expression) -> bool:
        """A width that an equation with constants alone determines stays as it is."""
        if len(difference.symbols()) != 1 or not dict(difference.terms).get((), 0):
            return False
        (atom,) = difference.symbols()
        self._define(atom, Expression.constant(atom.value))
        return True

    def _divide(self, difference: Expression) -> bool:
        """Use that a remainder is zero, or a quotient exact."""
        for atom, dividend, divisor in _quotients(difference):
            exact = dividend - divisor * Expression.of(atom)
            is_remainder = atom.name == "%" and difference.terms <= {((atom,), 1), ((atom,), -1)}
            if is_remainder or (atom.name == "//" and difference in (exact, -exact)):
                return self._make_divisible(dividend, divisor)
        return self._halve(difference)

    def _halve(self, difference: Expression) -> bool:
        """Use that `(a + 1) // 2 = a // 2`, and the like, if and only if 2 divides a."""
        quotients = _quotients(difference)
        if len(quotients) != 2 or len(difference.terms) != 2 or difference.value:
            return False
        (one, above, divisor), (two, below, other) = sorted(quotients, key=lambda q: -q[1].value)
        if (one.name, two.name) != ("//", "//") or divisor != other or not divisor.is_constant:
            return False
        step = above - below
        whole = below.value % divisor.value == 0
        if not (step.is_constant and whole and step.value == divisor.value - 1):
            return False
        return self._make_divisible(below, divisor)

    def _make_divisible(self, dividend: Expression, divisor: Expression) -> bool:
        if divisor.is_constant:
            return self._make_multiple(dividend, abs(divisor.value))
        lone = _lone_symbol(dividend)
        if lone is None or lone in divisor.symbols() or dividend.value % divisor.value:
            return False
        # The divisor is a width, so that the number of times that it fits is a count, which stays.
        self._define(lone, divisor * Expression.constant(dividend.value // divisor.value))
        return True

    def _make_multiple(self, dividend: Expression, divisor: int) -> bool:
        """Restrict the symbols of `dividend` so that the integer `divisor` divides it."""
        shared = math.gcd(divisor, *(c for _, c in dividend.terms))
        divisor //= shared
        dividend = Expression(
            frozenset((m, c // shared) for m, c in dividend.terms), dividend.value // shared
        )
        if divisor == 1 or not dividend.terms:
            return False
        if len(dividend.terms) == 1:
            ((monomial, _),) = dividend.terms
            for atom in monomial:
                if atom.is_symbol and atom.value % divisor == 0:
                    new = self.symbol(atom.value // divisor, f"{atom.name}/{divisor}")
                    self._define(atom, Expression.constant(divisor) * new)
                    return True
            return False
        for monomial, coefficient in dividend:
            if len(monomial) == 1 and abs(coefficient) == 1 and monomial[0].is_symbol:
                (atom,) = monomial
                rest = dividend - Expression.constant(coefficient) * Expression.of(atom)
                if atom in rest.symbols():
                    continue
                times = self.symbol(dividend.value // divisor, f"{atom.name}/{divisor}")
                definition = Expression.constant(divisor) * times - rest
                self._define(atom, definition if coefficient > 0 else -definition)
                return True
        return False

    def _isolate(self, difference: Expression) -> bool:
        """Define a symbol that stands alone by the rest."""
        if _is_fixed_sum(difference):
            return False  # one part of it would shrink by what the others grow
        candidates = []
        for monomial, coefficient in difference:
            if len(monomial) != 1 or abs(coefficient) != 1 or not monomial[0].is_symbol:
                continue
            (atom,) = monomial
            rest = Expression(difference.terms - {(monomial, coefficient)}, 0)
            if atom in rest.symbols():
                continue
            definition = difference - Expression.constant(coefficient) * Expression.of(atom)
            definition = -definition if coefficient > 0 else definition
            negative = any(c < 0 for _, c in definition.terms)
            candidates.append((negative, len(definition.terms), -atom.serial, atom, definition))
        if not candidates:
            return False
        *_, atom, definition = min(candidates, key=lambda c: c[:3])
        self._define(atom, definition)
        return True

    def _balance(self, difference: Expression) -> bool:
        """Use that in `a x = b y` each side is divisible by the coefficient of the other."""
        for monomial, coefficient in difference:
            if monomial and abs(coefficient) > 1:
                term = product(monomial, coefficient)
                if self._make_multiple(difference - term, abs(coefficient)):
                    return True
        return False


def _is_fixed_sum(difference: Expression) -> bool:
    """Tell whether a difference says that several widths add up to a constant."""
    constant = dict(difference.terms).get((), 0)
    others = [c for monomial, c in difference.terms if monomial]
    return (
        len(others) > 1
        and all(c * constant < 0 for c in others)
        and all(atom.is_symbol for atom in difference.atoms())
    )


def _quotients(expression: Expression) -> list[tuple[Atom, Expression, Expression]]:
    """Return the quotients and remainders with their parts, oldest first."""
    atoms = sorted(expression.atoms(), key=lambda atom: atom.serial)
    return [(atom, *atom.parts) for atom in atoms if atom.parts is not None]


def _lone_symbol(expression: Expression) -> Atom | None:
    if len(expression.terms) != 1:
        return None
    ((monomial, coefficient),) = expression.terms
    return (
        monomial[0] if len(monomial) == 1 and coefficient == 1 and monomial[0].is_symbol else None
    )
