"""Outputs and inputs in containers of people's own."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import attrs
import torch
import torch.nn.functional as F
from tests.torture.base import SHAPE, Mlp, mlp_macs
from tests.torture.habit import habit
from torch import Tensor, nn
from transformers.utils import ModelOutput

ENDS = ("a", "c")


class PlainOutput:
    def __init__(self, logits: Tensor, name: str = "out") -> None:
        self.logits, self.name = logits, name


@habit(SHAPE, mlp_macs, ends=ENDS, refused={"export": "exported"})
class OwnClassOut(Mlp):
    def forward(self, x: Tensor) -> Any:
        return PlainOutput(logits=super().forward(x))


@dataclass
class DataOutput:
    logits: Tensor
    hidden: Tensor | None = None


@habit(SHAPE, mlp_macs, ends=ENDS)
class DataclassOut(Mlp):
    def forward(self, x: Tensor) -> Any:
        return DataOutput(super().forward(x))


class TupleOutput(NamedTuple):
    logits: Tensor
    steps: int
    note: str | None = None


@habit(SHAPE, mlp_macs, ends=ENDS)
class NamedTupleOut(Mlp):
    def forward(self, x: Tensor) -> Any:
        return TupleOutput(super().forward(x), 3)


@attrs.define
class AttrsOutput:
    """With slots, as attrs makes them."""

    logits: Tensor


@habit(SHAPE, mlp_macs, ends=ENDS, refused={"export": "exported"})
class AttrsOut(Mlp):
    def forward(self, x: Tensor) -> Any:
        return AttrsOutput(super().forward(x))


class Bunch(dict):
    """A dict whose entries are attributes too."""

    __getattr__ = dict.__getitem__


@habit(SHAPE, mlp_macs, ends=ENDS, refused={"export": "exported"})
class DictSubclassOut(Mlp):
    def forward(self, x: Tensor) -> Any:
        return Bunch(logits=super().forward(x), name="out")


@habit(SHAPE, mlp_macs, ends=ENDS, refused={"export": "exported"})
class NestedOut(Mlp):
    def forward(self, x: Tensor) -> Any:
        return OrderedDict(levels=[{"p3": super().forward(x)}, None], size=(4, "rows"), scale=0.5)


@dataclass
class TransformersOutput(ModelOutput):
    logits: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None


@habit(SHAPE, mlp_macs, ends=ENDS)
class ModelOutputOut(Mlp):
    def forward(self, x: Tensor) -> Any:
        return TransformersOutput(logits=super().forward(x))


def no_loss_but_the_model_s(output: Any) -> Tensor:
    return output["loss"] if isinstance(output, dict) else output


def with_labels() -> dict[str, Any]:
    return {"x": torch.randn(SHAPE), "labels": torch.randint(5, (4,))}


@habit(with_labels, mlp_macs, loss=no_loss_but_the_model_s)
class LossAlone(Mlp):
    """The number of classes is seen by the loss alone: it must not grow."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(super().forward(x), labels)


@habit(with_labels, mlp_macs, loss=no_loss_but_the_model_s, ends=ENDS)
class LossInTrainingOnly(Mlp):
    """As torchvision's detectors: losses in training, predictions in evaluation."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = super().forward(x)
        if self.training:
            return {"loss": F.cross_entropy(logits, labels)}
        return {"prediction": logits.argmax(1), "logits": logits}


def kept_loss(output: Any) -> Tensor:
    assert output is None
    return ReturnsNothing.latest


@habit(
    with_labels,
    mlp_macs,
    loss=kept_loss,
    refused={"profile": "no tensor", "transform": "no tensor", "export": "no tensor"},
    warns={"freeze": "hold no tensor"},
)
class ReturnsNothing(Mlp):
    """The loss is left where the training loop fetches it."""

    latest: Tensor

    def forward(self, x: Tensor, labels: Tensor) -> None:
        ReturnsNothing.latest = F.cross_entropy(super().forward(x), labels)


@habit(
    SHAPE,
    mlp_macs,
    ends=ENDS,
    loss=lambda outputs: list(outputs)[-1].square().mean(),
    refused={
        "inference": "generator",
        "transform": "generator",
        "profile": "generator",
        "export": "generator",
    },
)
class Generator(Mlp):
    """Yields what each stage makes: nothing runs before the first is asked for."""

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        yield x.mean()
        x = F.relu(self.b(x))
        yield x.mean()
        yield self.c(x)


class Batch:
    def __init__(self, x: Tensor, size: int) -> None:
        self.x, self.size = x, size


@habit(lambda: (Batch(torch.randn(SHAPE), 4),), mlp_macs, ends=ENDS, refused={"export": "exported"})
class OwnClassIn(Mlp):
    def forward(self, batch: Batch) -> Tensor:
        assert len(batch.x) == batch.size
        return super().forward(batch.x)


@dataclass
class DataBatch:
    x: Tensor
    scale: float = 1.0


@habit(
    lambda: (DataBatch(torch.randn(SHAPE)),), mlp_macs, ends=ENDS, refused={"export": "exported"}
)
class DataclassIn(Mlp):
    def forward(self, batch: DataBatch) -> Tensor:
        return super().forward(batch.x * batch.scale)


@habit(lambda: {"batch": {"images": {"x": torch.randn(SHAPE)}, "names": ["a"] * 4}}, mlp_macs)
class NestedDictIn(Mlp):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return super().forward(batch["images"]["x"])


@habit(lambda: {"scale": 0.5, "x": torch.randn(SHAPE), "mode": "mean"}, mlp_macs, ends=ENDS)
class KeywordsOnly(Mlp):
    def forward(self, *, x: Tensor, mode: str, scale: float) -> Tensor:
        assert mode == "mean"
        return super().forward(x) * scale


@habit(lambda: (torch.randn(4, 5), torch.randn(4, 7)), mlp_macs)
class AnyArguments(Mlp):
    def forward(self, *parts: Tensor, **options: Any) -> Tensor:
        return super().forward(torch.cat(parts, 1) * options.get("scale", 1))


@habit(lambda: ([torch.randn(4, 5), torch.randn(4, 7)],), mlp_macs)
class ListOfTensors(Mlp):
    def forward(self, parts: list[Tensor]) -> Tensor:
        return super().forward(torch.cat(parts, 1))


@habit(lambda: {"x": torch.randn(SHAPE), "keep": torch.rand(4) > 0.5}, mlp_macs, ends=ENDS)
class OptionalMask(Mlp):
    def forward(self, x: Tensor, other: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        y = super().forward(x) if other is None else other
        return y if keep is None else torch.where(keep[:, None], y, y.new_zeros(()))


@habit(lambda: torch.randint(20, (4, 6)), lambda w: 24 * w("a", "b"), ends=("table", "b"))
class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12, padding_idx=0)
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(F.relu(self.a(self.table(ids)))) * (ids != 0).unsqueeze(-1)
