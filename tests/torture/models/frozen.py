"""Parameters that do not train, and tables."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import torch
import torch.nn.functional as F
from tests.torture.base import IMAGE, SHAPE, Cnn, Mlp, cnn_macs, mlp_macs
from tests.torture.habit import habit
from torch import Tensor, nn


def sinusoids(length: int, width: int) -> Tensor:
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(width // 2) * 2 / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


class Tokens(nn.Module):
    """Six vectors through two layers, with positions in the hidden width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(self.a(x) + self.positions())))

    def positions(self) -> Tensor:
        raise NotImplementedError


def token_macs(w):
    return 12 * w("a", "b", "c")


@habit((2, 6, 12), token_macs)
class SinusoidBuffer(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(9, 16), persistent=False)

    def positions(self) -> Tensor:
        return self.table[:6]


@habit((2, 6, 12), token_macs)
class SinusoidParameter(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(sinusoids(9, 16), requires_grad=False)

    def positions(self) -> Tensor:
        return self.table[:6]


@habit((2, 6, 12), token_macs, refused={"widening": "positions_table|FrozenPositions"})
class FrozenPositions(Tokens):
    """Embeddings that somebody trained: no rule says what they would be at another width."""

    def __init__(self) -> None:
        super().__init__()
        self.positions_table = nn.Embedding.from_pretrained(torch.randn(6, 16), freeze=True)

    def positions(self) -> Tensor:
        return self.positions_table(torch.arange(6))


@habit(
    lambda: torch.randint(20, (4, 6)),
    lambda w: 24 * w("a", "b"),
    refused={"widening": r"table\.weight.*constants="},
)
class FrozenEmbedding(nn.Module):
    """The first layer maps the pretrained vectors, which stay as they are, to the width."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.randn(20, 12))
        self.a = nn.Linear(12, 16)
        self.b = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(F.relu(self.a(self.table(ids))))


@habit(SHAPE, mlp_macs, exclude="a", refused={"widening": "a.weight"})
class FrozenBackbone(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)


@habit(
    SHAPE,
    lambda w: 4 * w("a", "b", "c", "low.1") + 4 * w.all("low.0"),
    exclude="a b c",
    refused={"widening": "."},
)
class Adapter(Mlp):
    """LoRA: what is large is frozen, what trains is small."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.low = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 24, bias=False))

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x) + self.low(x)


@habit(IMAGE, lambda w: 32 * w("a", "b", "blur") + 2 * w("c"), exclude="blur")
class BlurLayer(Cnn):
    """A frozen depthwise convolution: each channel gets the same binomial filter."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False).requires_grad_(False)
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.blur.weight.copy_(torch.outer(row, row).expand(12, 1, 3, 3))

    def middle(self, x: Tensor) -> Tensor:
        return self.b(self.blur(x))


@habit(IMAGE, lambda w: 32 * w("a", "b") + 2 * w("c") + 32 * 9 * w.size("a", 0))
class BlurBuffer(Cnn):
    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", torch.outer(row, row)[None, None])

    def middle(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.filter.expand(channels, 1, 3, 3)
        return self.b(F.conv2d(x, kernel, padding=1, groups=channels))


@habit(
    SHAPE, lambda w: 4 * 12 * 16 + 4 * w("b", "c"), refused={"widening": "did not grow|not known"}
)
class FourierFeatures(nn.Module):
    """Random frequencies map the input to the first width."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(12, 16))
        self.b, self.c = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        angles = x @ self.frequencies
        return self.c(F.relu(self.b(torch.cat([angles.sin(), angles.cos()], 1))))


@habit(IMAGE, cnn_macs)
class NormalisesInput(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.48, 0.46, 0.41]).view(3, 1, 1))
        self.std = torch.tensor([0.23, 0.22, 0.22]).view(3, 1, 1)  # no buffer

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.mean) / self.std)


@habit(SHAPE, mlp_macs)
class ClassWeights(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_weights", torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.class_weights


@habit((2, 6, 12), token_macs)
class CausalTable(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("causal", torch.ones(8, 8).tril().bool())
        self.register_buffer("position_ids", torch.arange(8)[None])

    def positions(self) -> Tensor:
        kept = self.causal[:6, :6].float().mean(1, keepdim=True)
        return kept + self.position_ids[0, :6, None] / 8


@habit(SHAPE, mlp_macs)
class Gates(Mlp):
    """A zero-dimensional parameter, one of a single element, and one without any."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.shift = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(1))
        self.empty = nn.Parameter(torch.empty(0))

    def middle(self, x: Tensor) -> Tensor:
        return self.gate * self.b(x) + self.shift + self.empty.sum()
