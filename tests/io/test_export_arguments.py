"""Programs take the arguments that models take, and return what can be written."""

import collections
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isoflop.errors import IsoflopError
from isoflop.io import export

Pair = collections.namedtuple("Pair", ["out", "extra"])
X = torch.randn(4, 12)


class Net(nn.Module):
    """A layer and a normalisation."""

    def __init__(self, run: Any, name: str = "layer") -> None:
        super().__init__()
        self.add_module(name, nn.Linear(12, 5))
        self.norm, self.run, self.name = nn.BatchNorm1d(5), run, name

    def apply_to(self, x: Tensor) -> Tensor:
        return self.norm(self.get_submodule(self.name)(x))


class Optional(Net):
    def forward(self, x: Tensor, a: Any = None, b: Any = 2, *, c: Any = None) -> Any:
        return self.run(self.apply_to(x), a, b, c)


class Variadic(Net):
    def forward(self, *xs: Tensor) -> Any:
        return self.run(self.apply_to(torch.cat(xs, 1)))


HALVES = X.chunk(2, 1)

CASES = {
    "left out": (Optional(lambda y, a, b, c: y * c), {"x": X, "c": torch.ones(1)}),
    "a number": (Optional(lambda y, a, b, c: y * b), {"x": X, "b": 3}),
    "a text": (Optional(lambda y, a, b, c: y if a == "sum" else 0 * y), (X, "sum")),
    "None": (Optional(lambda y, a, b, c: y * b if a is None else y), (X, None, 4)),
    "a nest": (
        Optional(lambda y, a, b, c: y * a["scale"] + a["by"][0]),
        {"x": X, "a": {"scale": 2.0, "by": [torch.ones(5), "names"]}},
    ),
    "several": (Variadic(lambda y: y), HALVES),
    "a named tuple out": (Optional(lambda y, a, b, c: Pair(y, -y)), (X,)),
    "in another order": (Optional(lambda y, a, b, c: y * a), {"a": 0.5, "x": X}),
    "a dict out": (Optional(lambda y, a, b, c: {"out": [y, None], "size": 4}), (X,)),
}


@pytest.mark.parametrize(("model", "inputs"), CASES.values(), ids=CASES)
def test_arguments_of_all_kinds(model, inputs, tmp_path):
    export(model, tmp_path / "model.pt2", format="pt2", example_inputs=inputs)
    program = torch.export.load(tmp_path / "model.pt2").module()
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    found, expected = (
        [leaf for leaf in tree_leaves(run(*args, **kwargs)) if isinstance(leaf, Tensor)]
        for run in (program, model.eval())
    )
    torch.testing.assert_close(found, expected)


UNREADABLE = {
    "a text": (Optional(lambda y, a, b, c: {"out": y, "name": "net"}), "without texts"),
    "a word of Python": (Optional(lambda y, a, b, c: y, "lambda"), "'lambda' has a word of Python"),
}


@pytest.mark.parametrize(("model", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_program_that_cannot_be_read_back_is_not_written(model, reason, tmp_path):
    with pytest.raises(IsoflopError, match=f"Optional cannot be exported as pt2.*{reason}"):
        export(model, tmp_path / "model.pt2", format="pt2", example_inputs=X)
    assert not list(tmp_path.iterdir())
