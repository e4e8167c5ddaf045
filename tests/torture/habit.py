"""A habit: one small model of the kind that people write, and what every public function owes it."""

import functools
import importlib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from isoflop.transforms import TRANSFORMS

FUNCTIONS = (
    "profile",
    *TRANSFORMS.names(),
    "masked",
    "compressed",
    "freeze",
    "accelerate",
    "accelerate.training",
    "save",
    "export",
    "spectral",
)

GROUPS = {
    "transform": TRANSFORMS.names(),
    "widening": ["wide", "low_rank"],
    "replacing": ["parallel", "factorized", "doped"],
    "inference": ["freeze", "accelerate"],
    "everything": list(FUNCTIONS),
}
"""Names under which a habit may give one reason for several functions."""


class Weights:
    """Numbers of weights, as the MACs of a habit are made of: of all weights, or of those on masks.

    Args:
        model: The model.
        masks: Masks by the full name of the weight.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> None:
        self._shapes = {
            n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)
        }
        self._masks = masks or {}
        self.used: set[str] = set()

    def __call__(self, *layers: str) -> int:
        """Return how many weights of these layers (or parameters) are not zero."""
        return sum(self.part(layer, ()) for layer in layers)

    def part(self, layer: str, index: Any) -> int:
        """Return how many of ``weight[index]`` are not zero."""
        name = self._name(layer)
        self.used.add(name)
        mask = self._masks.get(name, torch.ones(self._shapes[name], dtype=torch.bool))
        return int(mask[index].sum())

    def all(self, *layers: str) -> int:
        """Return how many weights these layers have, zeros included."""
        return sum(torch.Size(self._shapes[self._name(layer)]).numel() for layer in layers)

    def size(self, layer: str, dim: int) -> int:
        """Return a size of a weight, for products of activations."""
        return self._shapes[self._name(layer)][dim]

    def _name(self, layer: str) -> str:
        return layer if layer in self._shapes else f"{layer}.weight"


def mean_square(output: Any) -> Tensor:
    """Return a loss that every floating-point output takes part in."""
    losses = [t.abs().float().square().mean() for t in tensors_of(output) if t.requires_grad]
    return torch.stack(losses).sum()


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors in a value: in containers, and in the attributes of other objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_of(item)]
    if isinstance(value, (list, tuple, types.GeneratorType)):
        return [t for item in value for t in tensors_of(item)]
    slots = [getattr(value, name) for name in getattr(type(value), "__slots__", ())]
    return [
        t for item in (*slots, *getattr(value, "__dict__", {}).values()) for t in tensors_of(item)
    ]


@dataclass(frozen=True, kw_only=True)
class Habit:
    """One habit.

    Attributes:
        name: Name of the function or class that makes the model.
        make: Makes the model.
        inputs: Makes example inputs, in the form in which a user would hand them in.
        macs: The MACs of a forward pass by hand, made of numbers of weights.
        refused: Fragments (regular expressions) of the messages of errors, by function or group of
            functions; all else must be right.
        warns: Fragments of the warnings that functions must give.
        loss: Maps the output to a scalar.
        first: Layers that the inputs reach first, where that is worth checking.
        last: Layers that the outputs come from.
        exclude: Patterns of modules to leave dense.
        changes_itself: Attributes that the forward pass sets, by path.
        scales: Whether `macs` holds for a widened model too.
        rounding: Error that rounding may cause, relative to the largest value.
        onnx: Whether to try ONNX as well.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    macs: Callable[[Weights], int]
    refused: Mapping[str, str] = field(default_factory=dict)
    warns: Mapping[str, str] = field(default_factory=dict)
    loss: Callable[[Any], Tensor] = mean_square
    first: frozenset[str] | None = None
    last: frozenset[str] | None = None
    exclude: tuple[str, ...] = ()
    changes_itself: frozenset[str] = frozenset()
    scales: bool = True
    rounding: float = 1e-4
    onnx: bool = False

    def build(self, seed: int = 0) -> nn.Module:
        """Return a new model."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.make()

    def examples(self, seed: int = 0) -> Any:
        """Return example inputs with values of their own."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.inputs()

    def run(self, model: nn.Module, seed: int = 0) -> Any:
        """Return the output of a model, on inputs and random numbers that `seed` decides."""
        examples = self.examples(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if isinstance(examples, Mapping):
                return model(**examples)
            return model(*(examples if isinstance(examples, (tuple, list)) else (examples,)))

    def refusal(self, function: str) -> str | None:
        """Return the fragment of the message with which `function` must refuse; None if it works."""
        return _lookup(self.refused, function)

    def warning(self, function: str) -> str | None:
        """Return the fragment of the warning that `function` must give."""
        return _lookup(self.warns, function)

    def __str__(self) -> str:
        return self.name


def _lookup(table: Mapping[str, str], function: str) -> str | None:
    if function in table:
        return table[function]
    found = [text for group, text in table.items() if function in GROUPS.get(group, ())]
    return found[0] if found else None


HABITS: dict[str, Habit] = {}

Make = TypeVar("Make", bound=Callable[[], nn.Module])


def habit(
    inputs: tuple[int, ...] | Callable[[], Any],
    macs: Callable[[Weights], int],
    *,
    refused: Mapping[str, str] | None = None,
    warns: Mapping[str, str] | None = None,
    ends: tuple[str, str] | None = None,
    loss: Callable[[Any], Tensor] = mean_square,
    exclude: str = "",
    changes_itself: str = "",
    scales: bool = True,
    rounding: float = 1e-4,
    onnx: bool = False,
) -> Callable[[Make], Make]:
    """Declare the class or function below as the model of a habit.

    Args:
        inputs: The shape of the one floating-point input, or what makes the example inputs.
        macs: The MACs of a forward pass on them, by hand: ``lambda w: 4 * w("first", "second")``
            where four rows meet the weights of two layers.
        refused: Which functions must refuse, and with what message.
        warns: Which functions must warn, and how.
        ends: First and last layers, several separated by spaces.
        loss: Maps the output to a scalar.
        exclude: Patterns of modules to leave dense, separated by spaces.
        changes_itself: Attributes that the forward pass sets, likewise.
        scales: Whether `macs` holds for a widened model too.
        rounding: Error that rounding may cause, relative to the largest value.
        onnx: Whether to try ONNX as well.
    """
    unknown = {*(refused or {}), *(warns or {})} - {*FUNCTIONS, *GROUPS}
    assert not unknown, unknown

    def register(make: Make) -> Make:
        name = make.__name__
        assert name not in HABITS, name
        HABITS[name] = Habit(
            name=name,
            make=make,
            inputs=inputs if callable(inputs) else functools.partial(torch.randn, inputs),
            macs=macs,
            refused=refused or {},
            warns=warns or {},
            loss=loss,
            first=None if ends is None else frozenset(ends[0].split()),
            last=None if ends is None else frozenset(ends[1].split()),
            exclude=tuple(exclude.split()),
            changes_itself=frozenset(changes_itself.split()),
            scales=scales,
            rounding=rounding,
            onnx=onnx,
        )
        return make

    return register


def load_all() -> list[Habit]:
    """Return all habits of the files in `models`."""
    for file in sorted((Path(__file__).parent / "models").glob("*.py")):
        importlib.import_module(f"tests.torture.models.{file.stem}")
    return list(HABITS.values())
