"""Integers that remember how they were computed, in the form PyTorch takes tensor sizes in.

PyTorch lets a size be a `torch.SymInt` around any object with the methods of its own symbolic
integers. The nodes here are such objects. They differ from PyTorch's own in three ways that suit
widths: arithmetic is a light polynomial rather than a sympy expression, only equations are recorded
(which branch of the code a comparison takes is not a property of the widths), and turning a size
into a plain number pins nothing by itself: if the number goes back into a shape, the equation that
this makes pins it.

A copy of a node is the node itself, whoever copies what holds it. A node refers to equations and to
names of modules, never to the model: code that walks what a size refers to meets no tensor.
"""

import linecache
import sys
import uuid
import weakref
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.fx.experimental import sym_node

from isoflop.widths.equations import Equations
from isoflop.widths.expressions import Expression

Claim = tuple[Expression, Expression]

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent.parent)
_CONVERSIONS = (__file__, torch.__file__, sym_node.__file__)


class Space:
    """The equations of one trace and where in the model it is.

    Attributes:
        equations: What was found to be equal.
        root: What to call the model itself.
        running: Paths of the modules that run, the innermost last.
        operation: Name of the operation that runs, if one does.
        plain: The code that made a plain number of a symbolic one, by the number.
    """

    def __init__(self, root: str = "the model") -> None:
        self.equations = Equations()
        self.root = root
        self.running: list[str] = [""]
        self.operation = ""
        self.plain: dict[int, str] = {}

    def made_plain(self, number: float) -> None:
        """Note that the code that runs makes a plain number, which says nothing of its origin."""
        if number not in self.plain and (line := line_of_user()) is not None:
            self.plain[int(number)] = line

    def location(self) -> str:
        """Describe the module and operation being run."""
        path = self.running[-1] or self.root
        return f"{path} ({self.operation})" if self.operation else path

    def symbol(self, value: int, name: str) -> Any:
        """Return a fresh symbolic size."""
        return torch.SymInt(IntegerNode(self, self.equations.symbol(value, name)))  # type: ignore[arg-type]

    def claim(self, claims: tuple[Claim, ...]) -> None:
        """Record equations that the run of the model relies on."""
        for left, right in claims:
            self.equations.equate(left, right, self.location())


def line_of_user() -> str | None:
    """Return the line that makes a plain number of a symbolic one, if that is the user's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename in _CONVERSIONS:
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    if file.startswith((_TORCH, _OURS)):
        return None
    return f"`{linecache.getline(file, line).strip()}` in {Path(file).name}:{line}"


def expression_of(size: Any) -> Expression:
    """Return the expression of a size, symbolic or plain."""
    if isinstance(size, torch.SymInt) and isinstance(size.node, IntegerNode):
        return size.node.expression
    return Expression.constant(int(size))


class _Node:
    """What PyTorch asks of every symbolic number."""

    shape_env = None
    constant = None
    fx_node = None
    pytype: type
    space: Space
    hint: Any

    def __copy__(self) -> "_Node":
        return self

    def __deepcopy__(self, memo: Any) -> "_Node":
        return self

    def __reduce__(self) -> Any:
        key = self.__dict__.setdefault("key", uuid.uuid4().hex)
        _PICKLED[key] = self
        return _unpickled, (key, self.hint)

    def is_int(self) -> bool:
        return self.pytype is int

    def is_float(self) -> bool:
        return self.pytype is float

    def is_bool(self) -> bool:
        return self.pytype is bool

    def wrap_int(self, value: int) -> "IntegerNode":
        return IntegerNode(self.space, Expression.constant(value))

    def wrap_float(self, value: float) -> "FloatNode":
        return FloatNode(self.space, value)

    def wrap_bool(self, value: bool) -> "BooleanNode":
        return BooleanNode(self.space, value, ())

    def eq(self, other: Any) -> "BooleanNode":
        return self.wrap_bool(self.hint == other.hint)

    def ne(self, other: Any) -> "BooleanNode":
        return self.wrap_bool(self.hint != other.hint)

    # Which way a comparison goes is a matter of the code, and says nothing of the widths.
    def lt(self, other: Any) -> "BooleanNode":
        return self.wrap_bool(self.hint < other.hint)

    def le(self, other: Any) -> "BooleanNode":
        return self.wrap_bool(self.hint <= other.hint)

    def gt(self, other: Any) -> "BooleanNode":
        return self.wrap_bool(self.hint > other.hint)

    def ge(self, other: Any) -> "BooleanNode":
        return self.wrap_bool(self.hint >= other.hint)

    def is_nested_int(self) -> bool:
        return False

    def nested_int(self) -> None:
        return None

    def is_symbolic(self) -> bool:
        return True

    def has_hint(self) -> bool:
        return True

    def clone(self) -> "_Node":
        return self

    # Code may look a module up by the text of a width.
    def str(self) -> Any:
        return str(self.hint)

    _graph_repr = str

    def maybe_as_float(self) -> None:
        return None

    def maybe_as_bool(self) -> None:
        return None

    def maybe_as_int(self) -> int | None:
        return None


class IntegerNode(_Node):
    """A symbolic integer."""

    def __init__(self, space: Space, expression: Expression) -> None:
        self.space = space
        self.expression = expression

    def __repr__(self) -> str:
        return repr(self.expression)

    @property
    def hint(self) -> int:
        return self.expression.value

    def require_hint(self, fallback: Any = None) -> int:
        return self.expression.value

    @property
    def expr(self) -> Any:
        if self.expression.is_constant:
            return sympy.Integer(self.expression.value)
        return sympy.Symbol(repr(self.expression), integer=True, positive=True)

    _expr = expr
    pytype = int

    def is_constant(self) -> bool:
        return self.expression.is_constant

    def maybe_as_int(self) -> int | None:
        return self.expression.value if self.expression.is_constant else None

    def int_(self) -> int:
        if not self.expression.is_constant:
            self.space.made_plain(self.expression.value)
        return self.expression.value

    def guard_int(self, file: Any = "", line: int = 0) -> int:
        return self.expression.value

    def _new(self, expression: Expression) -> "IntegerNode":
        return IntegerNode(self.space, expression)

    def add(self, other: "IntegerNode") -> "IntegerNode":
        return self._new(self.expression + other.expression)

    def sub(self, other: "IntegerNode") -> "IntegerNode":
        return self._new(self.expression - other.expression)

    def mul(self, other: "IntegerNode") -> "IntegerNode":
        return self._new(self.expression * other.expression)

    def neg(self) -> "IntegerNode":
        return self._new(-self.expression)

    def pos(self) -> "IntegerNode":
        return self

    def abs(self) -> "IntegerNode":
        return self if self.expression.value >= 0 else self.neg()

    def int_floordiv(self, other: "IntegerNode") -> "IntegerNode":
        return self._new(self.space.equations.quotient("//", self.expression, other.expression))

    floordiv = int_floordiv

    def mod(self, other: "IntegerNode") -> "IntegerNode":
        return self._new(self.space.equations.quotient("%", self.expression, other.expression))

    def pow_by_natural(self, other: "IntegerNode") -> "IntegerNode":
        power = Expression.constant(1)
        for _ in range(other.expression.value):
            power = power * self.expression
        return self._new(power)

    def pow(self, other: Any) -> Any:
        return self.pow_by_natural(other) if other.is_int() else self.sym_float().pow(other)

    def int_truediv(self, other: "IntegerNode") -> "FloatNode":
        if self.hint % other.hint == 0:
            exact = self.space.equations.quotient("//", self.expression, other.expression)
            return FloatNode(self.space, self.hint / other.hint, exact)
        return self.sym_float().truediv(other)

    def truediv(self, other: Any) -> "FloatNode":
        return self.int_truediv(other) if other.is_int() else self.sym_float().truediv(other)

    float_truediv = truediv

    def sym_float(self) -> "FloatNode":
        return FloatNode(self.space, float(self.hint), self.expression)

    def guard_float(self, file: Any = "", line: int = 0) -> float:
        return float(self.hint)

    def floor(self) -> "IntegerNode":
        return self

    ceil = trunc = sym_int = floor

    def round(self, ndigits: int | None = None) -> "IntegerNode":
        return self

    def is_integer(self) -> "BooleanNode":
        return self.wrap_bool(True)

    def sym_min(self, other: "IntegerNode") -> "IntegerNode":
        return self if self.hint <= other.hint else other

    def sym_max(self, other: "IntegerNode") -> "IntegerNode":
        return self if self.hint >= other.hint else other

    def eq(self, other: "IntegerNode") -> "BooleanNode":
        return BooleanNode(self.space, self.hint == other.hint, self._equal(other))

    def ne(self, other: "IntegerNode") -> "BooleanNode":
        return BooleanNode(self.space, self.hint != other.hint, self._equal(other))

    def _equal(self, other: "IntegerNode") -> tuple[Claim, ...]:
        if self.hint != other.hint or self.expression == other.expression:
            return ()
        if self.hint == 1:
            return ()  # asked to broadcast; a width of one is none
        return ((self.expression, other.expression),)

    def sym_sum(self, args: Any) -> "IntegerNode":
        total = Expression.constant(0)
        for arg in args:
            total = total + arg.expression
        return self._new(total)

    def is_non_overlapping_and_dense_indicator(self, sizes: Any, strides: Any) -> "IntegerNode":
        return self.wrap_int(int(_is_dense(_hints(sizes), _hints(strides))))

    def is_non_overlapping_and_dense(self, sizes: Any, strides: Any) -> "BooleanNode":
        return self.wrap_bool(_is_dense(_hints(sizes), _hints(strides)))

    def is_contiguous(self, sizes: Any, strides: Any) -> "BooleanNode":
        order = range(len(sizes) - 1, -1, -1)
        return self.wrap_bool(_is_packed(_hints(sizes), _hints(strides), order))

    def is_channels_last_contiguous_2d(self, sizes: Any, strides: Any) -> "BooleanNode":
        packed = len(sizes) == 4 and _is_packed(_hints(sizes), _hints(strides), (1, 3, 2, 0))
        return self.wrap_bool(packed)

    def is_channels_last_contiguous_3d(self, sizes: Any, strides: Any) -> "BooleanNode":
        packed = len(sizes) == 5 and _is_packed(_hints(sizes), _hints(strides), (1, 4, 3, 2, 0))
        return self.wrap_bool(packed)

    # Taking a tensor for channels-last changes only how its copies are laid out.
    def is_channels_last_strides_2d(self, sizes: Any, strides: Any) -> "BooleanNode":
        return self.is_channels_last_contiguous_2d(sizes, strides)

    def is_channels_last_strides_3d(self, sizes: Any, strides: Any) -> "BooleanNode":
        return self.is_channels_last_contiguous_3d(sizes, strides)


class BooleanNode(_Node):
    """A truth value, with the equations that it stands for."""

    pytype = bool

    def __init__(self, space: Space, value: bool, claims: tuple[Claim, ...]) -> None:
        self.space = space
        self.hint = value
        self.claims = claims

    def __repr__(self) -> str:
        return str(self.hint)

    @property
    def expr(self) -> Any:
        if not self.claims:
            return sympy.true if self.hint else sympy.false
        return sympy.Symbol(repr(self.claims))

    def is_constant(self) -> bool:
        return not self.claims

    def maybe_as_bool(self) -> Any:
        return None if self.claims else self.hint

    def bool_(self) -> bool:
        self.space.claim(self.claims)
        return self.hint

    def guard_bool(self, file: Any = "", line: int = 0) -> bool:
        return self.bool_()

    expect_true = guard_size_oblivious = guard_or_false = guard_or_true = guard_bool

    def statically_known_true(self, file: Any = "", line: int = 0) -> bool:
        return self.hint and not self.claims

    def sym_not(self) -> "BooleanNode":
        return BooleanNode(self.space, not self.hint, self.claims)

    def and_(self, other: "BooleanNode") -> "BooleanNode":
        value = self.hint and other.hint
        # A conjunction that is true says all that its parts do.
        return BooleanNode(self.space, value, (*self.claims, *other.claims) if value else ())

    def or_(self, other: "BooleanNode") -> "BooleanNode":
        reasons = [part.claims for part in (self, other) if part.hint]
        # True for one reason alone, a disjunction says what that reason does.
        claims = reasons[0] if len(reasons) == 1 else ()
        return BooleanNode(self.space, bool(reasons), claims)

    sym_and, sym_or = and_, or_

    def sym_ite(self, then: Any, otherwise: Any) -> Any:
        return then if self.bool_() else otherwise

    def sym_int(self) -> IntegerNode:
        return self.wrap_int(int(self.hint))

    def sym_float(self) -> "FloatNode":
        return FloatNode(self.space, float(self.hint))


class FloatNode(_Node):
    """A number that no size depends on any more: its value is kept, and of which size it was made.

    Attributes:
        origin: The size, if there is one and it is not known to be constant.
    """

    pytype = float

    def __init__(self, space: Space, value: float, origin: Expression | None = None) -> None:
        self.space = space
        self.hint = float(value)
        self.origin = None if origin is None or origin.is_constant else origin

    def __repr__(self) -> str:
        return str(self.hint)

    @property
    def expr(self) -> Any:
        return sympy.Float(self.hint)

    def is_constant(self) -> bool:
        return False

    def maybe_as_float(self) -> Any:
        return self.hint

    def guard_float(self, file: Any = "", line: int = 0) -> float:
        self.space.made_plain(self.hint)
        return self.hint

    def _new(self, value: float, other: Any = None) -> "FloatNode":
        origins = [node.origin for node in (self, other) if isinstance(node, FloatNode)]
        if isinstance(other, IntegerNode):
            origins.append(other.expression)
        return FloatNode(self.space, value, next((o for o in origins if o is not None), None))

    def add(self, other: Any) -> "FloatNode":
        return self._new(self.hint + other.hint, other)

    def sub(self, other: Any) -> "FloatNode":
        return self._new(self.hint - other.hint, other)

    def mul(self, other: Any) -> "FloatNode":
        return self._new(self.hint * other.hint, other)

    def truediv(self, other: Any) -> "FloatNode":
        return self._new(self.hint / other.hint, other)

    float_truediv = truediv

    def mod(self, other: Any) -> "FloatNode":
        return self._new(self.hint % other.hint, other)

    def pow(self, other: Any) -> "FloatNode":
        return self._new(self.hint**other.hint, other)

    float_pow = pow

    def neg(self) -> "FloatNode":
        return self._new(-self.hint)

    def pos(self) -> "FloatNode":
        return self

    def abs(self) -> "FloatNode":
        return self._new(abs(self.hint))

    def sym_min(self, other: Any) -> "FloatNode":
        return self._new(min(self.hint, other.hint))

    def sym_max(self, other: Any) -> "FloatNode":
        return self._new(max(self.hint, other.hint))

    def _plain(self, value: int) -> IntegerNode:
        self.space.made_plain(value)
        return self.wrap_int(value)

    def floor(self) -> IntegerNode:
        return self._plain(int(self.hint // 1))

    def ceil(self) -> IntegerNode:
        return self._plain(-int(-self.hint // 1))

    def trunc(self) -> IntegerNode:
        return self._plain(int(self.hint))

    sym_int = trunc

    def round(self, ndigits: int | None = None) -> Any:
        return (
            self._plain(round(self.hint))
            if ndigits is None
            else self._new(round(self.hint, ndigits))
        )

    def is_integer(self) -> BooleanNode:
        return self.wrap_bool(self.hint.is_integer())

    def sym_float(self) -> "FloatNode":
        return self


_PICKLED: "weakref.WeakValueDictionary[str, _Node]" = weakref.WeakValueDictionary()
"""The nodes that were pickled in this process, as long as their trace lasts."""


def _unpickled(key: str, value: Any) -> _Node:
    """Return the node that was pickled; where its trace is over, one of its value alone."""
    node = _PICKLED.get(key)
    if node is not None:
        return node
    constant = IntegerNode(Space(), Expression.constant(0))
    wrap = {bool: constant.wrap_bool, int: constant.wrap_int, float: constant.wrap_float}
    return wrap[type(value)](value)


def _hints(sizes: Any) -> list[int]:
    return [node.hint for node in sizes]


def _is_packed(sizes: list[int], strides: list[int], order: Any) -> bool:
    expected = 1
    for dim in order:
        if sizes[dim] != 1:
            if strides[dim] != expected:
                return False
            expected *= sizes[dim]
    return True


def _is_dense(sizes: list[int], strides: list[int]) -> bool:
    order = sorted(range(len(sizes)), key=lambda dim: (sizes[dim] == 1, strides[dim], sizes[dim]))
    return _is_packed(sizes, strides, [dim for dim in order if sizes[dim] != 1])
