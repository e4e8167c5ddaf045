"""Layers of all kinds."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import warnings

import torch
import torch.nn.functional as F
from tests.torture.base import IMAGE, SHAPE, Cnn, Mlp, cnn_macs, mlp_macs
from tests.torture.habit import habit
from torch import Tensor, nn

COMPRESSED = "only nn.Linear, nn.Conv2d|does not pad"


@habit((2, 12, 8), lambda w: 16 * w("0", "2", "4"), refused={"compressed": COMPRESSED})
def Convolutions1d() -> nn.Module:  # noqa: N802
    return nn.Sequential(
        nn.Conv1d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv1d(16, 24, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv1d(24, 5, 1),
    )


@habit(
    (1, 2, 3, 4, 4),
    lambda w: 48 * w("0") + 8 * w("2") + 8 * w("4"),
    refused={"compressed": COMPRESSED},
)
def Convolutions3d() -> nn.Module:  # noqa: N802
    return nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(8, 12, (2, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        nn.ReLU(),
        nn.Conv3d(12, 5, 1),
    )


@habit(IMAGE, lambda w: 32 * w("a") + 32 * w("b") + 2 * w("c"), refused={"compressed": COMPRESSED})
class Transposed(Cnn):
    """Each of sixteen pixels is multiplied by the whole kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.ConvTranspose2d(12, 16, 3, stride=2, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x, output_size=(8, 8))


@habit(IMAGE, lambda w: 32 * w("a", "b.0", "b.1") + 2 * w("c"))
class DepthwiseSeparable(Cnn):
    def __init__(self) -> None:
        super().__init__()
        depthwise = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.b = nn.Sequential(depthwise, nn.Conv2d(24, 16, 1))


@habit(IMAGE, lambda w: 32 * w("a") + 8 * w("b") + 2 * w("c"))
class GroupedAndStrided(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 16, 3, stride=2, padding=1, groups=4)


@habit(IMAGE, cnn_macs, refused={"compressed": COMPRESSED})
class CircularPadding(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 16, 3, padding="same", padding_mode="circular")


@habit(IMAGE, cnn_macs, refused={"compressed": COMPRESSED})
class LopsidedPadding(Cnn):
    """A kernel of four pixels: one zero before, two after."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 16, 4, padding="same")

    def middle(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.b(x)


def deformed(w) -> int:
    return 32 * w("a", "offsets", "b.weight") + 2 * w("c")


@habit(IMAGE, deformed, refused={"widening": "exclude 'offsets'"})
class Deformable(Cnn):
    def __init__(self) -> None:
        from torchvision.ops import DeformConv2d

        super().__init__()
        self.offsets = nn.Conv2d(12, 18, 1)
        self.b = DeformConv2d(12, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x, self.offsets(x))


@habit(
    lambda: (torch.randn(4, 12), torch.randn(4, 12)),
    lambda w: 4 * w("a", "c") + 4 * w("pair"),
    scales=False,
    refused={"low_rank": "parts that stay dense"},
)
class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.pair, self.c = nn.Linear(12, 16), nn.Bilinear(16, 12, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c(F.relu(self.pair(self.a(x), y)))


@habit(
    lambda: (torch.randint(20, (9,)), torch.tensor([0, 3, 3, 7])),
    lambda w: 4 * w("a", "b"),
)
class BagOfWords(nn.Module):
    """The second text is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(20, 16, mode="mean")
        self.a, self.b = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.b(F.relu(self.a(self.table(ids, offsets))))


@habit(SHAPE, mlp_macs)
class TransformersConv1D(Mlp):
    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.b = Conv1D(24, 16)


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


@habit(SHAPE, mlp_macs, refused={"compressed": "subclasses"})
class SubclassOfLinear(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b = Doubled(16, 24)


class Renamed(nn.Linear):
    """A subclass that adds nothing, as frameworks have by the dozen."""


@habit(SHAPE, mlp_macs, refused={"compressed": "subclasses"})
class SubclassThatAddsNothing(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b = Renamed(16, 24)


class Scaled(nn.Linear):
    """Another signature: layers of adapters take more than an input."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale


@habit(SHAPE, mlp_macs, refused={"compressed": "subclasses"})
class LayerWithArguments(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b = Scaled(16, 24)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x, scale=0.5)


@habit(SHAPE, mlp_macs)
class InputByKeyword(Mlp):
    """Every module is called by the name of its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.act = nn.Dropout(0.1), nn.ReLU()

    def middle(self, x: Tensor) -> Tensor:
        return self.act(input=self.drop(input=self.b(input=x)))


@habit(IMAGE, cnn_macs)
class ImagesByKeyword(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(input=self.b(input=x))


@habit(IMAGE, lambda w: 32 * w("a", "b") + 2 * w("c", "down", "up"), onnx=True)
class SqueezeExcite(Cnn):
    """Two convolutions on maps of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x)
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1))))
        return y * F.hardsigmoid(gate)


def normed(norm: nn.Module) -> nn.Module:
    model = Cnn()
    model.b = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), norm)
    return model


def normed_macs(w) -> int:
    return 32 * w("a", "b.0") + 2 * w("c")


@habit(IMAGE, normed_macs)
def GroupNormed() -> nn.Module:  # noqa: N802
    return normed(nn.GroupNorm(4, 16))


@habit(IMAGE, normed_macs)
def InstanceNormed() -> nn.Module:  # noqa: N802
    return normed(nn.InstanceNorm2d(16, affine=True, track_running_stats=True))


@habit(IMAGE, normed_macs)
def LocalResponseNormed() -> nn.Module:  # noqa: N802
    return normed(nn.LocalResponseNorm(3))


@habit(IMAGE, normed_macs)
def BatchNormWithoutStatistics() -> nn.Module:  # noqa: N802
    return normed(nn.BatchNorm2d(16, track_running_stats=False, affine=False))


@habit(IMAGE, normed_macs)
def BatchNormOfCumulativeMean() -> nn.Module:  # noqa: N802
    return normed(nn.BatchNorm2d(16, momentum=None))


@habit(IMAGE, cnn_macs)
class UsedBeforeAndAfterNorm(Cnn):
    """The output of the convolution goes on beside its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return self.norm(y) + y.tanh()


@habit(IMAGE, lambda w: 32 * w("a") + 64 * w("b.0") + 2 * w("c"))
class RunsWithoutItsNorm(Cnn):
    """The convolution of a sequence runs once more, alone."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16))

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x) + self.b[0](x)


@habit(IMAGE, lambda w: 32 * w("a", "b.0") + 2 * w("c"))
class MembersInOtherOrder(Cnn):
    """A sequence whose members are called one by one, the norm first."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(12))

    def middle(self, x: Tensor) -> Tensor:
        conv, norm = self.b
        return conv(norm(x))


VALUES = {"profile": "values", "transform": "values", "export": "exported"}
"""What needs the values of tensors; `freeze` has no graph of such a model."""


def look_at(x: Tensor) -> Tensor:
    """Return the tensor, unless it has become infinite."""
    return x if x.isfinite().all() else torch.zeros_like(x)


@habit(IMAGE, lambda w: 32 * w("a") + 64 * w("b.0") + 2 * w("c"), refused=VALUES)
class RunsWithoutItsNormByValue(RunsWithoutItsNorm):
    def middle(self, x: Tensor) -> Tensor:
        return super().middle(look_at(x))


@habit(IMAGE, lambda w: 32 * w("a", "b.0") + 2 * w("c"), refused=VALUES)
class MembersInOtherOrderByValue(MembersInOtherOrder):
    def middle(self, x: Tensor) -> Tensor:
        return super().middle(look_at(x))


@habit(IMAGE, lambda w: 32 * w("a", "b.0") + 2 * w("c"), refused=VALUES)
class MemberUsedBeforeAndAfterNormByValue(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16))

    def middle(self, x: Tensor) -> Tensor:
        y = self.b[0](look_at(x))
        return self.b[1](y) + y.tanh()


@habit(IMAGE, lambda w: 32 * w("a", "b", "side") + 2 * w("c"))
class OneNormTwoConvolutions(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.side, self.norm = nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.b(x)) + self.norm(self.side(x))


@habit((2, 6, 12), lambda w: 12 * w("a", "b", "c"))
class NormOverTokens(Mlp):
    """BatchNorm1d of the six places, not of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.b(x))


@habit(SHAPE, mlp_macs)
class NormByFunction(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(24)

    def middle(self, x: Tensor) -> Tensor:
        n = self.norm
        assert n.running_mean is not None
        y = F.batch_norm(self.b(x), n.running_mean, n.running_var, n.weight, n.bias, self.training)
        return F.layer_norm(y, (y.shape[-1],))


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@habit(IMAGE, cnn_macs)
class NormOverChannels(Cnn):
    """Channels go last for the norm, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RootMeanSquare(16)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.b(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@habit(IMAGE, cnn_macs)
class FrozenNorm(Cnn):
    def __init__(self) -> None:
        from torchvision.ops import FrozenBatchNorm2d

        super().__init__()
        self.norm = FrozenBatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.b(x))


@habit(IMAGE, lambda w: 32 * w("a", "b") + 2 * w("c"))
class Residual(Cnn):
    """Convolution and norm, then a sum; the sum changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.norm, self.c = (
            nn.Conv2d(12, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.Linear(12, 5),
        )

    def middle(self, x: Tensor) -> Tensor:
        y = self.norm(self.b(x))
        x = F.relu(x)
        y += x
        return y
