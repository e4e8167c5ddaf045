"""Operations on shapes, places and layouts."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import torch
import torch.nn.functional as F
from tests.torture.base import IMAGE, SHAPE, Cnn, Mlp, cnn_macs, mlp_macs
from tests.torture.habit import habit
from torch import Tensor, nn


@habit(SHAPE, mlp_macs, ends=("a", "c"))
class InPlace(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x)
        y += 1
        y[:, ::2] *= 2
        y[0].clamp_(min=0)
        return F.relu_(y)


@habit(SHAPE, mlp_macs)
class AsStrided(Mlp):
    """Windows that overlap, by strides."""

    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x).contiguous()
        windows = y.as_strided((y.shape[0], y.shape[1] - 1, 2), (y.shape[1], 1, 1))
        return y + F.pad(windows.amax(2), (0, 1))


@habit((2, 6, 12), lambda w: 12 * w("a", "b", "c"))
class ManyViews(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).contiguous().view(x.shape[0], 4, -1, x.shape[1])
        x = x.movedim(-1, 1).flatten(2).unflatten(2, (4, -1)).reshape(*x.shape[:1], x.shape[-1], -1)
        return self.b(x)


@habit(IMAGE, cnn_macs, onnx=True)
class ChannelsLast(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


@habit(IMAGE, cnn_macs, refused={"low_rank": "parts that stay dense"})
class UnfoldAndMultiply(Cnn):
    """A convolution as a product of matrices."""

    def middle(self, x: Tensor) -> Tensor:
        columns = F.unfold(x, 3, padding=1)
        y = self.b.weight.flatten(1) @ columns + self.b.bias[:, None]
        return y.unflatten(2, x.shape[2:])


@habit(IMAGE, lambda w: 32 * w("a") + 8 * w("b") + 2 * w("c"))
class PixelShuffle(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Conv2d(48, 64, 1), nn.Linear(16, 5)

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.b(F.pixel_unshuffle(x, 2)), 2)


@habit(IMAGE, lambda w: 32 * w("a") + 128 * w("b") + 2 * w("c"))
class Interpolates(Cnn):
    def middle(self, x: Tensor) -> Tensor:
        y = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.interpolate(self.b(y), size=x.shape[-2:], mode="nearest")


@habit(IMAGE, cnn_macs)
class PadsAndRolls(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(12, 16, 3)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(F.pad(x.roll((1, -1), (2, 3)), (1, 1, 1, 1), mode="reflect"))


@habit(IMAGE, lambda w: 32 * w("a", "b") + 2 * w("c"))
class CoordinateChannels(Cnn):
    """Two channels more that say where a pixel is."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(14, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        places = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack(places).float().expand(len(x), -1, -1, -1)
        return self.b(torch.cat([x, grid], 1))


@habit(IMAGE, lambda w: 32 * w("a", "b") + 2 * w("c"))
class FlattensPixels(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))).view(x.size(0), -1))


@habit(SHAPE, mlp_macs)
class HalfTheWidth(Mlp):
    """A size by a floating-point ratio."""

    def middle(self, x: Tensor) -> Tensor:
        half = int(x.size(1) * 0.5)
        return self.b(torch.cat([x[:, half:], x[:, :half]], 1))


@habit(SHAPE, lambda w: 4 * w("a", "b", "c"))
class SplitsAndJoins(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(12, 5)

    def middle(self, x: Tensor) -> Tensor:
        gate, value = self.b(x).tensor_split(2, -1)
        return torch.stack([gate.sigmoid(), value]).prod(0)


@habit(SHAPE, lambda w: 4 * w("a", "b", "c") + 4 * 4 * w.size("b", 0), rounding=1e-3)
class Distances(Mlp):
    """Distances of all pairs of rows: a product of matrices inside."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x))))
        return self.c(y) + torch.cdist(y, y, compute_mode="use_mm_for_euclid_dist").mean()


@habit(
    (2, 12, 8),
    # Two transforms of eight points, each of 8 log 8 steps a channel.
    lambda w: 16 * w("a", "c") + 2 * 5 * w("spectrum") + 2 * 2 * w.size("a", 0) * 8 * 3,
    scales=False,
    refused={"transform": "complex", "compressed": "Conv1d"},
)
class Fourier(nn.Module):
    """An operator on the five frequencies of eight points, by complex weights per frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv1d(12, 16, 1), nn.Conv1d(16, 5, 1)
        self.spectrum = nn.Parameter(0.1 * torch.randn(16, 16, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        modes = torch.einsum("bim,io->bom", torch.fft.rfft(x), self.spectrum)
        return self.c(F.relu(x + torch.fft.irfft(modes, n=8)))


@habit(
    SHAPE,
    mlp_macs,
    refused={
        "transform": "values",
        "profile": "values",
    },
)
class BooleanIndex(Mlp):
    """How many rows go through the layer depends on their values."""

    def middle(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 24)
        keep = x.sum(1) > 0
        y[keep] = self.b(x[keep])
        return y


@habit(SHAPE, mlp_macs)
class GatherAndScatter(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x)
        order = y.argsort(1)
        ranked = torch.zeros_like(y).scatter_(1, order, y.gather(1, order.flip(1)))
        return ranked.index_add(0, torch.tensor([0, 1]), y[:2]).cumsum(0)


@habit(SHAPE, mlp_macs)
class Vmap(Mlp):
    """Every row by itself, mapped."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.vmap(self.b)(x)


@habit(lambda: torch.randn(3, 4, 4), lambda w: 16 * w("a", "b"))
class NoBatch(nn.Module):
    """An image without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))
