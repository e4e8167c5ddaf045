"""Floats that are a power of a width, such as the scale of attention, `head_dim ** -0.5`.

Nothing in a number says that it was computed from a width, and a dropout of 0.25 is no
`1 / sqrt(16)`. So the trace follows what is multiplied by each number that a module holds: where the
result is, or goes into, a product of activations that sums over 16 channels, 0.25 is the scale of
that product. Where a number multiplies something else, such as an embedding by the root of its width,
its name must say that it is a scale as well.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

from isoflop.errors import WideningError
from isoflop.widths.expressions import Expression
from isoflop.widths.nodes import expression_of

_ROOTS = (-0.5, 0.5)
_FOURTH_ROOTS = (-0.25, 0.25)
_POWERS = (*_ROOTS, -1.0, 1.0, *_FOURTH_ROOTS)
"""The powers of a width that are looked for, the most common first."""

_FEW = 256
"""Tensors of at most so many equal elements may hold a scale, such as one for every head."""

_SMALLEST = 8
"""Numbers that are no attributes are taken for powers of widths of this size or more."""

_EXACT = 1e-5
"""How far a number may be from the power of a width that it is, as a part of it."""

_SCALE_NAME = re.compile(r"scal|factor|multiplier|temp|tau$|norm|sqrt|rsqrt|gain|coef")
_OTHER_NAME = re.compile(
    r"^p$|prob|drop|eps|momentum|slope|theta|base|rate|std|init|decay|layer_?scale|^res|resid|thresh|ratio"
)

_PRODUCTS = frozenset({"matmul", "bmm", "mm", "dot", "vecdot", "linalg_vecdot", "mv"})
_SUMS_OF_PRODUCTS = frozenset({"baddbmm", "addbmm", "addmm"})
_CREATIONS = frozenset(
    {"tensor", "as_tensor", "full", "scalar_tensor", "new_tensor", "new_full", "full_like"}
)
_MULTIPLICATIONS = frozenset({"mul", "multiply", "div", "divide", "true_divide", "rdiv"})
_FACTORS = {
    **dict.fromkeys(_SUMS_OF_PRODUCTS | {"add", "sub", "subtract", "rsub"}, ("alpha",)),
    **dict.fromkeys(("addcmul", "addcdiv"), ("value",)),
}
"""Options by which functions multiply."""

_END = re.compile(
    r"linear$|conv|softmax$|sigmoid|(layer|rms|batch|group|instance)_norm$|normalize|embedding"
)
"""Names of functions behind which it does not matter any more by what their input was multiplied."""


class Source:
    """A number that a module holds, and what is known of its use.

    Args:
        name: Name of the attribute; empty if the number comes from elsewhere.
        value: Its value in the model as it is.
        place: Where it is, or where it is used, for messages.
        tolerance: How far it may be from a power of a width, as a part of it.
        path: Path of the module that uses it, where it comes from no attribute.
        origin: The size of which a forward pass made it.

    Attributes:
        logarithm: Whether it is the logarithm of what multiplies.
        products: Over what the products sum that it multiplies.
        factors: Sizes of what else it multiplies.
    """

    def __init__(
        self,
        name: str,
        value: float,
        place: str,
        *,
        tolerance: float = _EXACT,
        path: str = "",
        origin: Expression | None = None,
    ) -> None:
        self.name = name
        self.value = value
        self.place = place
        self.tolerance = tolerance
        self.path = path
        self.origin = origin
        self.logarithm = False
        self.products: dict[Expression, None] = {}
        self.factors: dict[Expression, None] = {}

    @property
    def is_scale(self) -> bool:
        """Whether its name says that it is a scale."""
        return bool(_SCALE_NAME.search(self.name)) and not _OTHER_NAME.search(self.name)

    def resized(
        self,
        new: Callable[[Expression], int],
        sizes: Callable[[], Collection[Expression]],
        told: bool,
    ) -> float:
        """Return the value in the widened model.

        Args:
            new: Returns the value of an expression in the widened model.
            sizes: Returns the sizes of the module, and of what it consists of, that grow.
            told: Whether a rule says that it follows a width.

        Raises:
            WideningError: It is a power of several sizes, which grow differently.
        """
        if not self.name:
            large = [size for size in self.products if size.value >= _SMALLEST]
            # Numbers such as 0.5 have other reasons than to be the fourth root of a width.
            fourth = () if math.frexp(self.value)[0] == 0.5 else _FOURTH_ROOTS
            groups = [(large, (*_ROOTS, -1.0, *fourth))]
        elif told:
            groups = [(part, _POWERS) for part in (self.products, self.factors, sizes())]
        elif _OTHER_NAME.search(self.name):
            return self.value
        elif self.products:
            groups = [(self.products, _POWERS), (sizes(), _ROOTS)]
        elif self.is_scale:
            groups = [(self.factors, (*_ROOTS, -1.0))]
        else:
            return self.value
        for group, powers in groups:
            for power in powers:
                values = {
                    self._power(new(size), power): size
                    for size in group
                    if self.is_power(size, power)
                }
                if len(values) > 1:
                    raise WideningError(
                        f"{self.place} = {self.value:.6g} is a power of several sizes that grow "
                        f"differently: {', '.join(map(repr, values.values()))}. Compute it in the "
                        "forward pass from the size that is meant, or name it among the `constants` of "
                        "`isoflop.register_widening_rule` and set it in `rebuild`."
                    )
                if values:
                    return next(iter(values))
        return self.value

    def is_power(self, size: Expression, power: float) -> bool:
        """Tell whether it is this power of a size."""
        if size.value < 2:
            return False
        exact = self._power(size.value, power)
        return abs(self.value - exact) <= self.tolerance * abs(exact)

    def _power(self, size: int, power: float) -> float:
        return power * math.log(size) if self.logarithm else size**power

    def size(self) -> Expression | None:
        """Return the size of which it is a power, of those over which products sum that it multiplies."""
        for power in _POWERS:
            for size in self.products:
                if self.is_power(size, power):
                    return size
        return None


class Scale(float):
    """A float that remembers from which numbers of the model it was computed."""

    sources: tuple[Source, ...]

    def __new__(cls, value: float, *sources: Source) -> "Scale":
        """Return `value`, computed from `sources`."""
        scale = super().__new__(cls, value)
        scale.sources = sources
        return scale

    def __copy__(self) -> "Scale":
        return self

    def __deepcopy__(self, memo: Any) -> "Scale":
        return self

    def __reduce__(self) -> Any:
        return float, (float(self),)

    def _with(self, value: Any, other: Any = None) -> Any:
        more = other.sources if isinstance(other, Scale) else ()
        return Scale(value, *self.sources, *more) if isinstance(value, float) else value

    def __mul__(self, other: Any) -> Any:
        return self._with(super().__mul__(other), other)

    def __rmul__(self, other: Any) -> Any:
        return self._with(super().__rmul__(other))

    def __truediv__(self, other: Any) -> Any:
        return self._with(super().__truediv__(other), other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(super().__rtruediv__(other))

    def __pow__(self, other: Any, mod: None = None) -> Any:
        return self._with(super().__pow__(other))

    def __neg__(self) -> "Scale":
        return self._with(super().__neg__())


def _plain_beside_sizes(name: str) -> Callable[[Scale, Any], Any]:
    """Return a binary operator that is that of a plain float where the other operand is symbolic.

    PyTorch's symbolic numbers take no subclasses of float.
    """
    operator = getattr(Scale, name)

    def apply(self: Scale, other: Any) -> Any:
        if isinstance(other, (torch.SymInt, torch.SymFloat)):
            return getattr(other, _MIRRORED[name])(float(self))
        return operator(self, other)

    return apply


_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
_MIRRORED |= {
    name: f"r{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}
_MIRRORED |= {mirrored: name for name, mirrored in _MIRRORED.items()}
_MIRRORED = {f"__{name}__": f"__{mirrored}__" for name, mirrored in _MIRRORED.items()}
for _name in _MIRRORED:
    setattr(Scale, _name, _plain_beside_sizes(_name))
Scale.__hash__ = float.__hash__  # type: ignore[method-assign]


class _Past:
    """By which numbers a tensor was multiplied, and of which products it is the result.

    Attributes:
        sources: The numbers.
        products: Over what the products sum.
        number: Whether the tensor itself is such a number, in all of its elements.
    """

    def __init__(
        self,
        sources: Iterable[Source] = (),
        products: Iterable[Expression] = (),
        number: bool = False,
    ) -> None:
        self.sources = dict.fromkeys(sources)
        self.products = dict.fromkeys(products)
        self.number = number


_NOTHING = _Past()


def hold(tensor: Tensor, source: Source) -> None:
    """Say that all elements of a tensor without values are a number of the model."""
    tensor._isoflop_past = _Past([source], number=True)  # type: ignore[attr-defined]


def follow(
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
    unnamed: Callable[[float, Expression | None], Source],
) -> None:
    """Note by what the arguments of a function of PyTorch were multiplied, for what it returns.

    Args:
        function: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        result: What it returned.
        unnamed: Returns a source for a float that comes from no attribute, and the size of which it was
            made, if that is known.
    """
    results = result if isinstance(result, (tuple, list)) else (result,)
    results = [item for item in results if isinstance(item, Tensor)]
    if not results:
        return
    name = getattr(function, "__name__", "").strip("_")
    past = _NOTHING
    if not _END.search(name):
        tensors = [t for t in _leaves((*args, *kwargs.values())) if isinstance(t, Tensor)]
        numbers: dict[Source, None] = {}
        for number in _numbers(name, args, kwargs):
            if isinstance(number, Scale):
                numbers |= dict.fromkeys(number.sources)
            elif isinstance(number, torch.SymFloat):
                origin = getattr(number.node, "origin", None)
                value: Any = number.node.hint
                if origin is not None and may_be_a_scale(value):
                    numbers[unnamed(value, origin)] = None
            elif type(number) is float and may_be_a_scale(number):
                numbers[unnamed(number, None)] = None
        past = _past(name, args, kwargs, tensors, numbers)
    for tensor in results:
        tensor._isoflop_past = past  # type: ignore[attr-defined]


def may_be_a_scale(number: float) -> bool:
    """Tell whether a number can be a power of a width, or the logarithm of one, at all."""
    return math.isfinite(number) and number not in (0.0, 1.0)


def _numbers(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Any]:
    """Return the numbers by which a function multiplies, or of which it makes a tensor."""
    if name in _MULTIPLICATIONS or name in _CREATIONS:
        return _leaves((*args, *kwargs.values()))
    if name == "scaled_dot_product_attention":
        return [kwargs.get("scale")]
    return [kwargs.get(option) for option in _FACTORS.get(name, ())]


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _leaves(value)
        else:
            yield value


def _past(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[Tensor],
    numbers: dict[Source, None],
) -> _Past:
    pasts = {id(tensor): getattr(tensor, "_isoflop_past", _NOTHING) for tensor in tensors}
    single = {id(t) for t in tensors if pasts[id(t)].number or _is_scalar(t)}
    multiplies = name in _MULTIPLICATIONS
    if name == "exp":
        for past in pasts.values():
            for source in past.sources if past.number else ():
                source.logarithm = True
    if multiplies or (name in _FACTORS and numbers):
        for tensor in tensors:
            if id(tensor) in single and multiplies:
                numbers |= pasts[id(tensor)].sources
        for tensor in tensors:
            for source in numbers if id(tensor) not in single else ():
                source.products |= pasts[id(tensor)].products
                source.factors |= dict.fromkeys(_sizes(tensor))
    summed = _summed(name, args, kwargs)
    if summed is not None:
        for source in (*numbers, *(s for past in pasts.values() for s in past.sources)):
            source.products[summed] = None
        return _Past(products=[summed])
    sources = dict(numbers)
    for tensor in tensors:
        if id(tensor) not in single or len(tensors) == 1 or multiplies:
            sources |= pasts[id(tensor)].sources
    products = [product for past in pasts.values() for product in past.products]
    number = len(single) == len(pasts)
    return _Past(sources, products, number) if sources or products else _NOTHING


def _summed(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Expression | None:
    """Return over how many channels a function sums products, or None if it does not."""
    if name in _PRODUCTS or name in _SUMS_OF_PRODUCTS or name == "scaled_dot_product_attention":
        position = int(name in _SUMS_OF_PRODUCTS)
        names = ("input", "query", "mat1", "batch1", "x", "self")
        named = (kwargs[n] for n in names[2 * position :] if n in kwargs)
        factor = args[position] if len(args) > position else next(named, None)
        return expression_of(factor.shape[-1]) if isinstance(factor, Tensor) else None
    if name == "sum":
        summed = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if isinstance(summed, Tensor) and isinstance(dim, int) and summed.ndim:
            return expression_of(summed.shape[dim])
    if name == "einsum" and args and isinstance(args[0], str):
        operands = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return _einsum(args[0].replace(" ", ""), operands)
    return None


def _einsum(equation: str, operands: Collection[Tensor]) -> Expression | None:
    inputs, arrow, output = equation.partition("->")
    total = Expression.constant(1)
    found = False
    letters: dict[str, Any] = {}
    for term, operand in zip(inputs.split(","), operands, strict=False):
        before, _, after = term.partition("...")
        sizes = operand.shape
        letters |= dict(zip(before, sizes, strict=False))
        letters |= dict(zip(reversed(after), reversed(sizes), strict=False))
    if not arrow:
        return None
    for letter, size in letters.items():
        if letter not in output:
            total, found = total * expression_of(size), True
    return total if found and len(operands) > 1 else None


def _is_scalar(tensor: Tensor) -> bool:
    return all(isinstance(size, int) and size == 1 for size in tensor.shape)


def _sizes(tensor: Tensor) -> Iterator[Expression]:
    """Return the sizes of a tensor, and those of what is left of it behind each dimension."""
    rest = Expression.constant(1)
    for size in reversed(tensor.shape):
        size = expression_of(size)
        rest = rest * size
        if not size.is_constant:
            yield size
        if not rest.is_constant:
            yield rest


def number_in(tensor: Tensor) -> float | None:
    """Return the value that all of the few elements of a floating-point tensor share, or None."""
    few = 0 < tensor.numel() <= _FEW and tensor.layout is torch.strided
    if not few or tensor.is_meta or not tensor.dtype.is_floating_point:
        return None
    with no_dispatch():
        first = tensor.flatten()[0]
        return first.item() if bool((tensor == first).all()) else None


def rounding(dtype: torch.dtype) -> float:
    """Return how far a number of a type may be from the power of a width that it is."""
    return max(_EXACT, torch.finfo(dtype).eps)
