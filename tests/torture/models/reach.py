"""Layers that `forward` reaches by other ways than the attribute that registers them."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import functools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from tests.torture.base import SHAPE, Mlp, mlp_macs
from tests.torture.habit import habit
from torch import Tensor, nn

ENDS = ("a", "c")


@habit(SHAPE, mlp_macs, ends=ENDS, onnx=True)
class NoHabit(Mlp):
    pass


@habit(SHAPE, mlp_macs, ends=ENDS)
class PlainList(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.order = [self.a, self.b, self.c]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order[:-1]:
            x = F.relu(layer(x))
        return self.order[-1](x)


@habit(SHAPE, mlp_macs, ends=ENDS)
class PlainDict(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.stages = {"one": self.a, "two": {"inner": (self.b, 3)}}

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stages["one"](x))
        return self.c(F.relu(self.stages["two"]["inner"][0](x)))


@habit(SHAPE, mlp_macs, ends=ENDS)
class Partial(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.run = functools.partial(_apply, self.b, scale=0.5)

    def middle(self, x: Tensor) -> Tensor:
        return self.run(x)


def _apply(layer, x, scale):
    return scale * layer(x)


@habit(SHAPE, mlp_macs, ends=ENDS)
class BoundMethod(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.run = self.b.forward

    def middle(self, x: Tensor) -> Tensor:
        return self.run(x)


@habit(SHAPE, mlp_macs, ends=ENDS)
class BoundMethodOfSelf(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.run = self.middle

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.run(F.relu(self.a(x)))))


@habit(SHAPE, mlp_macs)
class LambdaOverSelf(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.run = lambda x: F.relu(self.b(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.run(F.relu(self.a(x))))


@habit(SHAPE, mlp_macs)
class Closure(Mlp):
    def __init__(self) -> None:
        super().__init__()
        layer = self.b

        def run(x):
            return F.relu(layer(x))

        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.run(F.relu(self.a(x))))


@habit(SHAPE, mlp_macs, ends=ENDS)
class ForwardReplaced(Mlp):
    """As quantisers and profilers do: the method of one instance is another one's."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(type(self).other, self)

    def other(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


@habit(SHAPE, mlp_macs, ends=ENDS)
class Property(Mlp):
    @property
    def neck(self):
        return self._modules["b"]

    def middle(self, x: Tensor) -> Tensor:
        return self.neck(x)


@habit(SHAPE, lambda w: 4 * w("inner.a", "inner.b", "inner.c"), ends=("inner.a", "inner.c"))
class GetattrMagic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


@habit(SHAPE, lambda w: 4 * w("layer1", "layer2", "c"), ends=("layer1", "c"))
class GetattrByNumber(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.number = 2
        self.layer1, self.layer2 = self.a, self.b
        del self.a, self.b

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.number):
            x = F.relu(getattr(self, f"layer{i + 1}")(x))
        return self.c(x)


class Scaled:
    __slots__ = ("scale",)


@habit(SHAPE, mlp_macs)
class Slots(Scaled, Mlp):
    """Neither `copy` nor `pickle` knows what to do with this class."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.5

    def middle(self, x: Tensor) -> Tensor:
        return self.scale * self.b(x)


@habit(SHAPE, lambda w: 4 * w("0", "1", "2"), ends=("2", "0"))
class ReversedList(nn.ModuleList):
    def __init__(self) -> None:
        super().__init__([nn.Linear(24, 5), nn.Linear(16, 24), nn.Linear(12, 16)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self):
            x = F.relu(layer(x))
        return x


@habit(SHAPE, lambda w: 4 * w("0", "1", "2.0", "2.1"), ends=("1", "2.1"))
class SequentialInOtherOrder(nn.Sequential):
    def __init__(self) -> None:
        inner = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 5))
        super().__init__(nn.Linear(16, 24), nn.Linear(12, 16), inner)

    def forward(self, x: Tensor) -> Tensor:
        return self[2](self[0](F.relu(self[1](x))))


@habit(SHAPE, lambda w: 4 * w("net.first", "net.second", "net.third"))
class SlicedSequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)]
        names = ["first", "relu", "second", "tanh", "third"]
        self.net = nn.Sequential(OrderedDict(zip(names, layers, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2:](self.net[:2](x))


@habit(SHAPE, lambda w: 4 * w("layers.one", "layers.two", "layers.head"))
class ModuleDictOfLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = {"head": nn.Linear(24, 5), "one": nn.Linear(12, 16), "two": nn.Linear(16, 24)}
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("one", "two"):
            x = F.relu(self.layers[name](x))
        return self.layers["head"](x)


@habit(
    SHAPE,
    lambda w: 4 * w("layers.in", "layers.class", "layers.weight"),
    refused={"export": "exported"},
)
class NamesOfAllKinds(nn.Module):
    """Names that mean something in Python, or to PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        layers = {"weight": nn.Linear(24, 5), "in": nn.Linear(12, 16), "class": nn.Linear(16, 24)}
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("in", "class"):
            x = F.relu(self.layers[name](x))
        return self.layers["weight"](x)


@habit(
    SHAPE,
    lambda w: 4 * w("weights.0", "weights.1", "named.out"),
    refused={
        "replacing": "no layer",
        "low_rank": "no layer",
        "masked": "No layer",
        "compressed": "No layer",
    },
)
class ParameterLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([0.3 * torch.randn(16, 12), 0.3 * torch.randn(24, 16)])
        self.named = nn.ParameterDict({"out": 0.3 * torch.randn(5, 24)})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = F.relu(F.linear(x, weight))
        return F.linear(x, self.named["out"])


class Tower(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.own, self.shared = nn.Linear(12, 16), shared

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(F.relu(self.own(x)))


@habit(SHAPE, lambda w: 4 * w("left.own", "right.own", "head") + 8 * w("left.shared"))
class TwoParents(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(16, 24)
        self.left, self.right = Tower(shared), Tower(shared)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.left(x) + self.right(-x)))


@habit(SHAPE, lambda w: 4 * w("a", "c") + 12 * w("b"))
class SameBlockThreeTimes(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 5)

    def middle(self, x: Tensor, depth: int = 3) -> Tensor:
        return x if depth == 0 else self.middle(F.relu(self.b(x)), depth - 1)


@habit(SHAPE, lambda w: 4 * w("a", "c") + 16 * w("b"))
class OneLayerTwoShapes(Mlp):
    """The layer in the middle sees (4, 16), then (4, 3, 16)."""

    def middle(self, x: Tensor) -> Tensor:
        triple = self.b(x.unsqueeze(1).expand(-1, 3, -1))
        return self.b(x) + triple.mean(1)


@habit(SHAPE, mlp_macs)
class ForwardCalledDirectly(Mlp):
    """Hooks do not run then."""

    def middle(self, x: Tensor) -> Tensor:
        return self.b.forward(x)


@habit(SHAPE, mlp_macs)
class WeightUsedByAnother(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        return x @ self.b.weight.t() + self.b.bias


@habit(SHAPE, mlp_macs, ends=ENDS)
class ReadsSizes(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x.reshape(-1, self.b.in_features))
        return y.view(len(x), self.b.out_features)


@habit(SHAPE, mlp_macs, ends=ENDS)
class ReadsDtype(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        return self.b(x.to(self.b.weight.dtype).to(self.b.weight.device))


@habit(SHAPE, mlp_macs, ends=ENDS)
class ReadsFirstParameter(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        first = next(self.parameters())
        return super().forward(x.to(first.device, first.dtype))


@habit(SHAPE, lambda w: 4 * w("0", "1", "2"), ends=("0", "2"))
class AsksForKinds(nn.Sequential):
    """An activation follows every layer that is one."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
            if isinstance(layer, nn.Linear):
                x = torch.sin(x)
        return x


@habit(
    SHAPE,
    mlp_macs,
    ends=ENDS,
    refused={"compressed": "PenaltyOnWeights.forward picks parameters by `named_parameters`"},
)
class PenaltyOnWeights(Mlp):
    """The second output is a penalty on all that is called a weight."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = [p for name, p in self.named_parameters() if name.endswith("weight")]
        return super().forward(x), sum(
            (w.square().sum() for w in weights), x.new_tensor(1e-4)
        ).sqrt()


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5).requires_grad_(False)
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@habit(SHAPE, lambda w: 4 * w("a", "b", "c") + 4 * 12 * 5)
class HiddenModule(Mlp):
    """Distillation keeps its teacher out of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["teacher"] = Teacher()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.teacher(x)


@habit(SHAPE, mlp_macs, ends=ENDS)
class AttributeOnLayer(Mlp):
    """Somebody has left a note on a layer, as initialisation schemes do."""

    def __init__(self) -> None:
        super().__init__()
        self.b.gain = 0.5
        self.b.schedule = {"start": 2}

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x) * self.b.gain * self.b.schedule["start"]


@habit(SHAPE, mlp_macs, ends=ENDS)
class ChildKnowsParent(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b.parent = [self]

    def middle(self, x: Tensor) -> Tensor:
        return self.b.parent[0].b(x)
