"""What modules hold besides parameters, and how they save and copy themselves."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import copy
import functools
import logging
import sys
import threading
from typing import Any

import torch
import torch.nn.functional as F
from tests.torture.base import SHAPE, Mlp, mlp_macs
from tests.torture.habit import habit
from torch import Tensor, nn


@habit(SHAPE, mlp_macs)
class ExtraState(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.scale = float(torch.rand(()))

    def get_extra_state(self) -> dict[str, Any]:
        return {"scale": self.scale, "names": ["a", "b"]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.scale = state["scale"]

    def middle(self, x: Tensor) -> Tensor:
        return self.scale * self.b(x)


def _rename(module, state, prefix, _local):
    for key in [k for k in state if k.startswith(f"{prefix}b.")]:
        state[key.replace("b.", "body.", 1)] = state.pop(key)


def _rename_back(state, prefix, *_):
    for key in [k for k in state if k.startswith(f"{prefix}body.")]:
        state[key.replace("body.", "b.", 1)] = state.pop(key)


@habit(SHAPE, mlp_macs)
class StateDictHooks(Mlp):
    """Files have other names than the module, as after a renaming."""

    def __init__(self) -> None:
        super().__init__()
        self._register_state_dict_hook(_rename)
        self._register_load_state_dict_pre_hook(_rename_back)


@habit(SHAPE, mlp_macs)
class OwnSaving(Mlp):
    """The state of one layer is kept transposed."""

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}version"] = torch.tensor(2)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        assert int(state_dict.pop(f"{prefix}version")) == 2
        super()._load_from_state_dict(state_dict, prefix, *args)


@habit(SHAPE, mlp_macs)
class BuffersOfAllKinds(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("not_saved", torch.ones(5) / 3, persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("no_parameter", None)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("flags", torch.tensor([True, False, True, True, False]))
        self.register_buffer("bytes", torch.arange(5, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.flags + self.not_saved.mean() * self.steps


@habit(SHAPE, mlp_macs)
class SparseBuffer(Mlp):
    """A graph's adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("graph", torch.eye(4).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.graph.to_dense().sum()


@habit(SHAPE, mlp_macs, refused={"transform": "lock", "inference": "lock", "export": "lock"})
class Lock(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def middle(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.b(x)


@habit(SHAPE, mlp_macs, refused={"transform": "log", "inference": "log", "export": "log"})
class OpenFile(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.log = sys.__stderr__

    def forward(self, x: Tensor) -> Tensor:
        assert self.log is not None
        self.log.write("")
        return super().forward(x)


@habit(SHAPE, mlp_macs, refused={"transform": "names", "inference": "names", "export": "names"})
class RunningIterator(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b.names = (n for n in "abc")


@habit(SHAPE, mlp_macs)
class RandomGenerator(Mlp):
    """Noise of its own in training, from random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def middle(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 1e-7 * torch.randn(x.shape, generator=self.generator)
        return self.b(x)


@habit(SHAPE, mlp_macs)
class Logger(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.log = logging.getLogger("tests.torture")

    def middle(self, x: Tensor) -> Tensor:
        self.log.debug("shape %s", x.shape)
        return self.b(x)


@habit(
    SHAPE,
    mlp_macs,
    refused={"transform": "copie", "inference": "copie", "export": "copie"},
)
class RefusesToBeCopied(Mlp):
    def __deepcopy__(self, memo):
        raise RuntimeError("make a new one")


@habit(
    SHAPE,
    mlp_macs,
    refused={"transform": "deepcopy", "inference": "deepcopy", "export": "deepcopy"},
)
class CopiesItself(Mlp):
    """The class knows best how it is copied."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = scale

    def __deepcopy__(self, memo):
        new = type(self)(self.scale)
        new.load_state_dict(self.state_dict())
        return new

    def middle(self, x: Tensor) -> Tensor:
        return self.scale * self.b(x)


@habit(SHAPE, mlp_macs)
class CachedProperty(Mlp):
    @functools.cached_property
    def width(self) -> int:
        return self.b.weight.shape[1]

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x.view(-1, self.width))


@habit(SHAPE, mlp_macs, changes_itself="shapes")
class CountsItsCalls(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, Any] = {}

    def middle(self, x: Tensor) -> Tensor:
        self.shapes["middle"] = x.shape
        return self.b(x)


@habit(SHAPE, mlp_macs, changes_itself="calls")
class CountsInAnInteger(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def middle(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(x)


@habit(SHAPE, mlp_macs, changes_itself="features")
class KeepsFeatures(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []

    def middle(self, x: Tensor) -> Tensor:
        self.features.append(x.detach())
        del self.features[:-2]
        return self.b(x)


@habit((2, 6, 12), lambda w: 12 * w("a", "b", "c"))
class CacheByLength(Mlp):
    """A table that is made when it is first needed."""

    tables: dict[int, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.tables = {}

    def middle(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length not in self.tables:
            self.tables[length] = torch.ones(length, length).tril() / length
        return self.b(x) + self.tables[length].sum(1, keepdim=True)


@habit(SHAPE, mlp_macs)
class MovingAverage(Mlp):
    """A statistic that training updates, as of a vector quantiser."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def middle(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.1)
        return self.b(x - self.mean)


@habit(SHAPE, mlp_macs, refused={"profile": "lazy|run", "everything": "lazy|run"})
class Lazy(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.LazyLinear(24)


class Settings:
    """An object of a configuration, with a width that layers are made by."""

    def __init__(self) -> None:
        self.hidden, self.middle, self.classes = 16, 24, 5


@habit((2, 3, 12), lambda w: 6 * w("a", "b", "c"), refused={"widening": "reshape"})
class ReadsConfiguration(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()

    def middle(self, x: Tensor) -> Tensor:
        copied = copy.deepcopy(self.settings)
        return self.b(x.reshape(-1, copied.hidden)).view(*x.shape[:-1], copied.middle)


@habit(SHAPE, mlp_macs, refused={"widening": "layer_norm"})
class BuildsLayersInForward(Mlp):
    """Builds a small layer of a fixed width in every pass."""

    def middle(self, x: Tensor) -> Tensor:
        return nn.Sequential(self.b, nn.LayerNorm(24, elementwise_affine=False))(x)


@habit(SHAPE, mlp_macs)
class FunctionalCall(Mlp):
    """As meta-learning does: other parameters through the same code."""

    def forward(self, x: Tensor) -> Tensor:
        layer = self.b
        halved = {name: p * 0.5 for name, p in layer.named_parameters()}
        y = torch.func.functional_call(layer, halved, (F.relu(self.a(x)),))
        return self.c(F.relu(y))
