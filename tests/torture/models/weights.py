"""Weights that are tied, joined, cut, scaled, or made of others before they multiply."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from tests.torture.base import IMAGE, SHAPE, Cnn, Mlp, mlp_macs
from tests.torture.habit import habit
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

TIED = "tied"
SUBCLASS = "subclasses"


@habit(
    lambda: torch.randint(20, (4, 6)),
    lambda w: 24 * w("a", "table"),
)
class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.a = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.a(self.table(ids))))


@habit(SHAPE, lambda w: 4 * w("a", "c") + 8 * w("b"), refused={"compressed": TIED})
class TiedLayers(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 5)
        self.twin = nn.Linear(16, 16)
        self.twin.weight = self.b.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.twin(F.relu(self.b(x)))


@habit(SHAPE, lambda w: 4 * w("a", "c") + 8 * w("b"), refused={"low_rank": "parts that stay dense"})
class TiedTransposed(Mlp):
    """An autoencoder that decodes by the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(16, 5)

    def middle(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.b(x)), self.b.weight.t())


@habit(SHAPE, mlp_macs)
class WeightReadElsewhere(Mlp):
    """The output is regularised by a weight; it multiplies nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.b.weight.square().mean()


@habit(SHAPE, lambda w: 4 * w("a", "q", "k", "c"))
class JoinedWeights(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 12), nn.Linear(16, 12)
        del self.b

    def middle(self, x: Tensor) -> Tensor:
        weight = torch.cat([self.q.weight, self.k.weight])
        return F.linear(x, weight, torch.cat([self.q.bias, self.k.bias]))


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c") + 4 * w.part("b", np.s_[:, : w.size("b", 1) // 2]),
)
class SlicedWeight(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return F.linear(x[:, :half], self.b.weight[:, :half], self.b.bias)


@habit(
    IMAGE,
    lambda w: 32 * w("a") + 32 * w.part("b", np.s_[:, :, 1:2, 1:2]) + 2 * w("c"),
)
class KernelCentre(Cnn):
    """A once-for-all network at its smallest kernel."""

    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.b.weight[:, :, 1:2, 1:2], self.b.bias)


@habit(
    SHAPE,
    lambda w: 4 * w("a", "h.0", "h.1", "h.2", "c"),
    refused={"low_rank": "parts that stay dense"},
)
class StackedLayers(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(nn.Linear(16, 24, bias=False) for _ in range(3))
        del self.b

    def middle(self, x: Tensor) -> Tensor:
        weights = torch.stack([layer.weight for layer in self.h])
        return torch.bmm(x.expand(3, -1, -1), weights.transpose(1, 2)).sum(0)


@habit(SHAPE, lambda w: 4 * w("a", "experts", "c"), refused={"low_rank": "parts that stay dense"})
class EinsumExperts(Mlp):
    """Every row meets every expert; the gate decides what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.experts = nn.Parameter(0.3 * torch.randn(3, 16, 24))
        del self.b

    def middle(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eio->beo", x, self.experts).amax(1)


@habit((4, 3, 12), lambda w: 12 * w("a", "c") + 4 * w("heads"))
class WeightPerHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(12, 16), nn.Linear(16, 5)
        self.heads = nn.Parameter(0.3 * torch.randn(3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(self.a(x).transpose(0, 1), self.heads)
        return self.c(F.relu(y.transpose(0, 1)))


@habit(SHAPE, lambda w: 4 * w("a", "weight", "c"))
class PlainParameter(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(0.3 * torch.randn(16, 24)),
            nn.Parameter(torch.zeros(24)),
        )
        del self.b

    def middle(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


@habit(SHAPE, mlp_macs)
class WeightTimesScalar(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))

    def middle(self, x: Tensor) -> Tensor:
        return F.linear(x, self.b.weight * self.gain, self.b.bias)


class Equalised(nn.Linear):
    """StyleGAN's: weights of variance one, scaled by the number of inputs as they multiply."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        nn.init.normal_(self.weight)
        self.gain = inputs**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


@habit(SHAPE, mlp_macs, refused={"compressed": SUBCLASS})
class EqualisedRate(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b = Equalised(16, 24)


@habit(SHAPE, lambda w: 4 * w("a", "c") + 4 * w("b"))
class WeightTimesVector(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.rand(24, 1))

    def middle(self, x: Tensor) -> Tensor:
        return F.linear(x, self.gains * self.b.weight, self.b.bias)


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c") + 16 * w.all("up.weight") + 4 * 16 * 24,
    refused={"widening": "parts that stay dense"},
)
class ProductOfWeights(Mlp):
    """A low-rank weight that is multiplied out, (16, 8) times (8, 24), before it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(16, 8, bias=False)
        self.up = nn.Linear(8, 24, bias=False)
        del self.b

    def middle(self, x: Tensor) -> Tensor:
        return F.linear(x, self.up.weight @ self.down.weight)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, padding=self.padding)


@habit(
    IMAGE,
    lambda w: 32 * w("a") + 32 * w.all("b.0") + 2 * w("c"),
    refused={"widening": "parts that stay dense", "compressed": SUBCLASS},
)
class WeightStandardisation(Cnn):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(Standardised(12, 16, 3, padding=1), nn.BatchNorm2d(16))


PARAMETRISED = "parametri|computed from|remove"
COMPUTED = {"transform": PARAMETRISED, "masked": PARAMETRISED, "compressed": PARAMETRISED}


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c", "b.weight_v"),
    changes_itself="b.weight",
    refused=COMPUTED,
)
class OldWeightNorm(Mlp):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(self.b)


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c", "b.parametrizations.weight.original1"),
    refused=COMPUTED,
)
class NewWeightNorm(Mlp):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.b)


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c", "b.weight_orig") + w("b.weight_orig") + 24,
    changes_itself="b.weight",
    refused=COMPUTED,
)
class OldSpectralNorm(Mlp):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.spectral_norm(self.b)


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c") + 5 * w("b.parametrizations.weight.original") + 24,
    refused=COMPUTED,
)
class NewSpectralNorm(Mlp):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.b)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c") + 4 * w.all("b.parametrizations.weight.original"),
    refused=COMPUTED,
)
class OwnParametrisation(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 5)
        parametrize.register_parametrization(self.b, "weight", Symmetric())


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c") + 4 * w("b.weight_orig"),
    changes_itself="b.weight",
    refused={"transform": "prune", "masked": "prune", "compressed": "prune"},
)
class TorchPruned(Mlp):
    def __init__(self) -> None:
        super().__init__()
        prune.random_unstructured(self.b, "weight", 0.5)


@habit(
    SHAPE,
    lambda w: 4 * w("a", "c") + 4 * w("q"),
)
class LearnedQueries(Mlp):
    """The inputs of a layer are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 16))
        self.q = nn.Linear(16, 24)
        del self.b

    def middle(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True) + self.q(self.queries.expand(len(x), -1))


@habit(
    SHAPE,
    lambda w: 4 * w("a", "make", "c") + 4 * 16 * 8,
    scales=False,
    refused={"widening": "did not grow|not known"},
)
class HyperNetwork(Mlp):
    """A layer whose weight another one makes, for every sample anew."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.c = nn.Linear(12, 16 * 8), nn.Linear(8, 5)
        del self.b

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(x).view(len(x), 8, -1)
        return self.c(F.relu(torch.bmm(weight, F.relu(self.a(x)).unsqueeze(2)).squeeze(2)))


@habit(
    IMAGE,
    lambda w: 32 * w("a", "b") + 2 * w("c") + 2 * w("style"),
    refused={"low_rank": "parts that stay dense"},
)
class Modulated(Cnn):
    """StyleGAN2's: the weight of a convolution is scaled by each sample's style."""

    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Linear(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        style = self.style(x.mean((2, 3)))
        y = F.relu(self.a(x))
        batch, channels, height, width = y.shape
        weight = self.b.weight[None] * style[:, None, :, None, None]
        weight = weight.reshape(-1, channels, 3, 3)
        y = y.reshape(1, batch * channels, height, width)
        y = F.conv2d(y, weight, padding=1, groups=batch).view(batch, -1, height, width)
        return self.c(F.relu(y).mean((2, 3)))


class MaskedByBuffer(nn.Linear):
    """MADE's layer: a triangle of its weight is zero for good."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("weight_mask", torch.ones(outputs, inputs).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_mask, self.bias)


@habit(
    SHAPE,
    mlp_macs,
    exclude="b",
    refused={"widening": "in b \\(linear\\) ties it to a size that must stay"},
)
class OwnWeightMask(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b = MaskedByBuffer(16, 24)


@habit(SHAPE, lambda w: 4 * w("a", "b", "c"))
class WeightIsANumber(Mlp):
    """Losses and samplers have a `weight` too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.weight_mask = 0.5, None
        self.norm = nn.Module()
        self.norm.weight = nn.Identity()

    def middle(self, x: Tensor) -> Tensor:
        return self.weight * self.norm.weight(self.b(x))


class ComplexLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(16, 16, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(x.to(torch.complex64) @ self.weight).flatten(1)


@habit(SHAPE, lambda w: 4 * w("a", "b", "c"), scales=False, refused={"transform": "complex"})
class ComplexWeight(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = ComplexLinear(), nn.Linear(32, 5)


@habit(lambda: torch.randn(SHAPE, dtype=torch.bfloat16), mlp_macs)
class BFloat16(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)


@habit(lambda: torch.randn(SHAPE, dtype=torch.float64), mlp_macs)
class Float64(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.double()


@habit(SHAPE, mlp_macs)
class MixedTypes(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b.double()

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x.double()).float()


class Ternary(nn.Linear):
    """As BitNet: rounded weights multiply, their gradients pass through the rounding."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean()
        rounded = (self.weight / scale).round().clamp(-1, 1) * scale
        return F.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


@habit(SHAPE, lambda w: 4 * w("a", "c") + 4 * w.all("b"), refused={"compressed": SUBCLASS})
class QuantisationAware(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b = Ternary(16, 24)


@habit(SHAPE, mlp_macs)
class DropConnect(Mlp):
    def middle(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.b.weight, 0.2, training=self.training), self.b.bias)


@habit(
    IMAGE,
    lambda w: 32 * w("a") + 64 * w("b") + 2 * w("c"),
    refused={"low_rank": "parts that stay dense"},
)
class SameKernelTwoDilations(Cnn):
    def middle(self, x: Tensor) -> Tensor:
        near = F.conv2d(x, self.b.weight, padding=1)
        return near + F.conv2d(x, self.b.weight, padding=2, dilation=2)
