"""Models that are wrapped, compiled, quantised, nested, or no more than one layer."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import warnings

import torch
import torch.nn.functional as F
from tests.torture.base import IMAGE, SHAPE, Cnn, Mlp
from tests.torture.habit import habit
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@habit(
    (4, 12),
    lambda w: 4 * w("weight"),
    warns={"wide": "changes no size"},
)
def OneLinear() -> nn.Module:  # noqa: N802
    return nn.Linear(12, 16)


@habit(
    IMAGE,
    lambda w: 32 * w("weight"),
    warns={"wide": "changes no size"},
)
def OneConvolution() -> nn.Module:  # noqa: N802
    return nn.Conv2d(3, 12, 3, padding=1)


@habit(
    SHAPE,
    lambda w: 4 * w("_orig_mod.a", "_orig_mod.b", "_orig_mod.c"),
    refused={"profile": "compile", "transform": "compile"},
)
def Compiled() -> nn.Module:  # noqa: N802
    return torch.compile(Mlp(), backend="eager")  # pyright: ignore[reportReturnType]


@habit(SHAPE, lambda w: 4 * w("module.a", "module.b", "module.c"))
def DataParallel() -> nn.Module:  # noqa: N802
    return nn.DataParallel(Mlp())


@habit(SHAPE, lambda w: 4 * w("module.a", "module.b", "module.c"))
def Averaged() -> nn.Module:  # noqa: N802
    return AveragedModel(Mlp())


@habit(
    SHAPE,
    lambda _: 0,
    refused=dict.fromkeys(("transform", "masked", "compressed", "save"), "quantised")
    | {"export": "exported"},
    warns={"profile": "quantized.linear_dynamic"},
)
def Quantised() -> nn.Module:  # noqa: N802
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Mlp(), {nn.Linear})


class Nested(nn.Module):
    """Two models of this zoo, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.mlp = Cnn(), Mlp()
        self.cnn.c = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(F.relu(self.cnn(x)))


habit(IMAGE, lambda w: 32 * w("cnn.a", "cnn.b") + 2 * w("cnn.c", "mlp.a", "mlp.b", "mlp.c"))(Nested)


@habit(
    SHAPE,
    lambda w: 0,
    refused={"transform": "no layer", "masked": "No layer", "compressed": "No layer"},
)
def NoWeights() -> nn.Module:  # noqa: N802
    return nn.Sequential(nn.ReLU(), nn.Flatten())


@habit(SHAPE, lambda w: 4 * w("a", "c") + 8 * w("b"), refused={"low_rank": "parts that stay dense"})
class Ensemble(Mlp):
    """Members whose weights are stacked and mapped over."""

    def middle(self, x: Tensor) -> Tensor:
        weights = torch.stack([self.b.weight, 2 * self.b.weight])
        return torch.vmap(F.linear, (None, 0))(x, weights).mean(0)
