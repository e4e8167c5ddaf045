"""Blocks as public repositories write them."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from tests.torture.base import IMAGE, SHAPE, Mlp
from tests.torture.habit import habit
from torch import Tensor, nn

TEXT = (2, 6, 12)
"""Two sequences of six vectors."""


def sequence_macs(*layers: str):
    """Return what counts the MACs of linear layers on `TEXT`."""
    return lambda w: 12 * w(*layers)


class Sequence(nn.Module):
    """A stem, a block on (2, 6, 16), and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def block(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


class Picture(nn.Module):
    """A stem, a block on (2, 16, 4, 4), and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def block(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((-2, -1)))


def picture_macs(*layers: str):
    """Return what counts the MACs of convolutions on `IMAGE`, without strides."""
    return lambda w: 32 * w("stem", *layers) + 2 * w("head")


@habit(
    lambda: torch.randint(20, (2, 6)),
    lambda w: (
        12 * w("transformer.h.0.c_attn", "transformer.h.0.c_proj", "lm_head")
        + 2 * 2 * 6 * 6 * w.size("transformer.h.0.c_proj", 1)
    ),
)
class NanoGpt(nn.Module):
    """Layers in a ModuleDict, a causal buffer cut to the length, and a crop of the block size."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(20, 16),
                "wpe": nn.Embedding(8, 16),
                "h": nn.ModuleList([CausalSelfAttention()]),
                "ln_f": nn.LayerNorm(16),
            }
        )
        self.lm_head = nn.Linear(16, 20, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx: Tensor) -> Tensor:
        _, t = idx.size()
        assert t <= 8, f"Cannot forward sequence of length {t}, block size is only 8"
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:  # pyright: ignore[reportGeneralTypeIssues]
            x = x + block(x)
        return self.lm_head(self.transformer.ln_f(x))


class CausalSelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.n_head, self.n_embd = 4, 16
        self.register_buffer("bias", torch.tril(torch.ones(8, 8)).view(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        q = q.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        v = v.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


@habit(IMAGE, lambda w: 32 * w("stem", "dw", "up", "down") + 2 * w("head"))
class ConvNext(Picture):
    """Channels last inside, and a learned scale per channel."""

    def build(self) -> None:
        self.dw = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm, self.up = nn.LayerNorm(16, eps=1e-6), nn.Linear(16, 64)
        self.down = nn.Linear(64, 16)
        self.gamma = nn.Parameter(1e-6 * torch.ones(16), requires_grad=True)

    def block(self, x: Tensor) -> Tensor:
        y = self.dw(x).permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(y))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


@habit(TEXT, sequence_macs("stem", "proj", "out", "head"))
class GatedGelu(Sequence):
    def build(self) -> None:
        self.proj, self.out = nn.Linear(16, 64), nn.Linear(32, 16)

    def block(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(hidden * F.gelu(gate))


@habit(
    lambda: (torch.randn(TEXT), torch.rand(2)),
    lambda w: 12 * w("stem", "mlp", "head") + 2 * w("time.0", "time.2", "modulation.1"),
)
class DiffusionBlock(Sequence):
    """The time becomes sinusoids in the forward pass, and modulates by six parts of one layer."""

    def build(self) -> None:
        self.frequency_embedding_size = 8
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(16, 3 * 16))
        self.norm = nn.LayerNorm(16, elementwise_affine=False)
        self.mlp = nn.Linear(16, 16)

    @staticmethod
    def timestep_embedding(t: Tensor, dim: int, max_period: int = 10000) -> Tensor:
        half = dim // 2
        steps = torch.arange(start=0, end=half, dtype=torch.float32)
        args = t[:, None].float() * torch.exp(-math.log(max_period) * steps / half)[None]
        return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.stem(x)
        c = self.time(self.timestep_embedding(t, self.frequency_embedding_size))
        shift, scale, gate = self.modulation(c).chunk(3, dim=1)
        y = self.norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        return self.head(x + gate.unsqueeze(1) * self.mlp(y))


EDGES = torch.tensor([[0, 1, 1, 2, 3, 0], [1, 0, 2, 1, 0, 3]])


@habit(lambda: (torch.randn(4, 12), EDGES), lambda w: 4 * w("a", "b", "root", "c"))
class MessagePassing(nn.Module):
    """A graph convolution: messages are summed where edges end, and divided by degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 24, bias=False)
        self.root, self.c = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.a(x).relu()
        source, target = edge_index
        degree = x.new_zeros(x.size(0)).scatter_add_(0, target, x.new_ones(target.numel()))
        messages = self.b(x)[source] * degree[target].pow(-0.5).unsqueeze(-1)
        total = torch.zeros_like(messages[: x.size(0)]).index_add_(0, target, messages)
        return self.c(F.relu(total + self.root(x)))


@habit(lambda: (torch.randn(4, 12), EDGES), lambda w: 4 * w("a", "b", "c"))
class GraphAttention(nn.Module):
    """Scores of edges are sums of products with a vector per head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.channels = 2, 8
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, self.heads * self.channels, bias=False)
        self.att = nn.Parameter(torch.randn(1, self.heads, self.channels))
        self.c = nn.Linear(self.heads * self.channels, 5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.b(self.a(x).relu()).view(-1, self.heads, self.channels)
        source, target = edge_index
        score = F.leaky_relu((h * self.att).sum(-1)[source], 0.2).exp()
        total = score.new_zeros(x.size(0), self.heads).index_add_(0, target, score)
        alpha = score / (total[target] + 1e-16)
        out = torch.zeros_like(h).index_add_(0, target, h[source] * alpha.unsqueeze(-1))
        return self.c(out.view(-1, self.heads * self.channels))


@habit(IMAGE, picture_macs("first", "second", "transition"))
class DenselyConnected(Picture):
    """All features so far are the input of each layer."""

    def build(self) -> None:
        self.first, self.second = (
            nn.Conv2d(16, 8, 3, padding=1, bias=False),
            nn.Conv2d(24, 8, 3, padding=1, bias=False),
        )
        self.norm1, self.norm2 = nn.BatchNorm2d(16), nn.BatchNorm2d(24)
        self.transition = nn.Conv2d(32, 16, 1)

    def block(self, x: Tensor) -> Tensor:
        features = [x]
        for norm, layer in ((self.norm1, self.first), (self.norm2, self.second)):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.transition(torch.cat(features, 1))


@habit(IMAGE, picture_macs("left", "right"))
class ChannelShuffle(Picture):
    """Half of the channels pass by; then those of both halves alternate."""

    def build(self) -> None:
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def block(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, F.relu(self.right(F.relu(self.left(changed))))), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


@habit(IMAGE, lambda w: 32 * w("stem", "one", "three", "five", "pooled") + 2 * w("head"))
class Branches(Picture):
    def build(self) -> None:
        self.one, self.three = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 3, padding=1)
        self.five, self.pooled = nn.Conv2d(16, 4, 5, padding=2), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(32, 5)

    def block(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1)


@habit(
    IMAGE,
    lambda w: 32 * w("stem", "inner.0", "smooth") + 8 * w("down", "inner.1") + 2 * w("head"),
)
class Pyramid(Picture):
    """Coarse features are added to finer ones, whose size they are given."""

    def build(self) -> None:
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.inner = nn.ModuleList([nn.Conv2d(16, 16, 1), nn.Conv2d(24, 16, 1)])
        self.smooth = nn.Conv2d(16, 16, 3, padding=1)

    def block(self, x: Tensor) -> Tensor:
        features = {"0": x, "1": F.relu(self.down(x))}
        last = self.inner[-1](list(features.values())[-1])
        fine = self.inner[0](features["0"])
        last = F.interpolate(last, size=fine.shape[-2:], mode="nearest")
        return self.smooth(fine + last)


@habit(
    IMAGE,
    lambda w: 32 * w("stem", "fuse") + 8 * w("down", "up") + 2 * w("head"),
    refused={"compressed": "cannot be compressed"},
)
class SkipsAcross(Picture):
    """A small U-Net: up by a transposed convolution, padded to the size of the skip, joined."""

    def build(self) -> None:
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.fuse = nn.Conv2d(32, 16, 3, padding=1)

    def block(self, x: Tensor) -> Tensor:
        y = self.up(F.relu(self.down(x)))
        dy, dx = x.size(2) - y.size(2), x.size(3) - y.size(3)
        y = F.pad(y, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.fuse(torch.cat([x, y], dim=1))


@habit(
    (2, 12, 9),
    lambda w: 18 * w("stem", "dilated", "mix", "head"),
    refused={"compressed": "cannot be compressed"},
)
class DilatedCausal(nn.Module):
    """WaveNet: padded on one side, gated by two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dilated = nn.Conv1d(12, 16, 1), nn.Conv1d(16, 32, 2, dilation=4)
        self.mix, self.head = nn.Conv1d(16, 16, 1), nn.Conv1d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pad = (self.dilated.kernel_size[0] - 1) * self.dilated.dilation[0]
        y = self.dilated(F.pad(x, (pad, 0)))
        tanh, sigmoid = y[:, : y.size(1) // 2], y[:, y.size(1) // 2 :]
        return self.head(x + self.mix(torch.tanh(tanh) * torch.sigmoid(sigmoid)))


@habit(
    TEXT,
    lambda w: 12 * w("stem", "channels", "head") + 2 * w.size("stem", 0) * w("tokens"),
    refused={"widening": "tokens"},
)
class MixesTokens(Sequence):
    """A linear layer over the positions, whose number is that of the input and stays."""

    def build(self) -> None:
        self.tokens, self.channels = nn.Linear(6, 6), nn.Linear(16, 16)

    def block(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


@habit(SHAPE, lambda w: 4 * w("a", "b", "c"))
class Maxout(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(12, 5)

    def middle(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return y.view(*y.shape[:-1], y.shape[-1] // 2, 2).max(-1)[0]


@habit(SHAPE, lambda w: 4 * w("a", "b", "c", "gate"))
class Highway(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 5)
        self.gate = nn.Linear(16, 16)
        nn.init.constant_(self.gate.bias, -2.0)

    def middle(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * self.b(x) + (1 - gate) * x


@habit(
    lambda: (torch.randn(4, 12), torch.randn(4, 12)),
    lambda w: 4 * w("image.0", "image.2", "text") + 4 * 4 * 8,
    loss=lambda outputs: outputs[-1].square().mean(),
    rounding=1e-3,
)
class TwoTowers(nn.Module):
    """CLIP: normalised features of two towers, all pairs, a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
        self.text = nn.Linear(12, 8)
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, t = self.image(image), self.text(text)
        i, t = F.normalize(i, dim=1), F.normalize(t, dim=1)
        logits = self.logit_scale.exp() * i @ t.t()
        return i, t, logits


@habit(SHAPE, lambda w: 4 * w("encode", "mu", "logvar", "decode", "out"))
class Variational(nn.Module):
    """Noise in training alone; a dictionary with the moments beside the result."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mu = nn.Linear(12, 16), nn.Linear(16, 8)
        self.logvar = nn.Linear(16, 8)
        self.decode, self.out = nn.Linear(8, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = F.relu(self.encode(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        return {"x": self.out(F.relu(self.decode(z))), "kl": (mu.square() + logvar.exp()).mean()}


@habit(
    IMAGE,
    lambda w: 32 * w("stem", "gates") + 2 * w("head"),
)
class RecurrentConvolution(Picture):
    """One step of a ConvLSTM from a state of zeros of the width."""

    def build(self) -> None:
        self.hidden_dim = 16
        self.gates = nn.Conv2d(32, 64, 3, padding=1)

    def block(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        h = torch.zeros(batch, self.hidden_dim, height, width, device=x.device)
        c = torch.zeros_like(h)
        combined = self.gates(torch.cat([x, h], dim=1))
        i, f, o, g = torch.split(combined, self.hidden_dim, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c)


@habit(
    IMAGE,
    lambda w: (
        32 * w("stem", "theta", "phi", "g", "out")
        + 2 * w("head")
        + 2 * 2 * 16 * 16 * w.size("theta", 0)
    ),
)
class NonLocal(Picture):
    def build(self) -> None:
        self.inter_channels = 8
        self.theta, self.phi = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.g, self.out = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)

    def block(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        g = self.g(x).view(batch, self.inter_channels, -1).permute(0, 2, 1)
        theta = self.theta(x).view(batch, self.inter_channels, -1).permute(0, 2, 1)
        phi = self.phi(x).view(batch, self.inter_channels, -1)
        y = torch.matmul(F.softmax(torch.matmul(theta, phi), dim=-1), g)
        y = y.permute(0, 2, 1).contiguous().view(batch, self.inter_channels, *x.size()[2:])
        return x + self.out(y)


@habit(SHAPE, lambda w: 4 * w("layers.0", "layers.1", "layers.2", "out"))
class JoinsItsInputAgain(nn.Module):
    """NeRF: the input is joined to the features of some layers, listed by number."""

    def __init__(self) -> None:
        super().__init__()
        self.skips = [1]
        sizes = [(12, 16), (16, 16), (28, 24)]
        self.layers = nn.ModuleList([nn.Linear(*size) for size in sizes])
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, _ in enumerate(self.layers):
            h = F.relu(self.layers[i](h))
            if i in self.skips:
                h = torch.cat([x, h], -1)
        return self.out(h)


@habit(
    lambda: (torch.randn(TEXT), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])),
    lambda w: 12 * w("stem", "phi") + 2 * w("head"),
)
class MaskedMean(Sequence):
    """A mean over the positions that a mask of integers keeps."""

    def build(self) -> None:
        self.phi = nn.Linear(16, 16)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        h = F.relu(self.phi(self.stem(x)))
        expanded = attention_mask.unsqueeze(-1).expand(h.size()).float()
        total = torch.sum(h * expanded, 1) / torch.clamp(expanded.sum(1), min=1e-9)
        return self.head(total)


@habit((6, 3, 4, 4), lambda w: 96 * w("stem", "conv") + 6 * w("head"))
class ShiftsInTime(Picture):
    """An eighth of the channels comes from the frame before, an eighth from the one after."""

    def build(self) -> None:
        self.n_segment, self.fold_div = 3, 8
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def block(self, x: Tensor) -> Tensor:
        nt, c, h, w = x.size()
        x = x.view(nt // self.n_segment, self.n_segment, c, h, w)
        fold = c // self.fold_div
        out = torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return self.conv(out.view(nt, c, h, w))


@habit(
    SHAPE,
    lambda w: 4 * w("online.0", "online.2", "predictor") + 4 * w.all("target.0", "target.2"),
    exclude="target",
    loss=lambda outputs: (2 - 2 * (outputs[0] * outputs[1]).sum(-1)).mean(),
    scales=False,
)
class MomentumTeacher(nn.Module):
    """BYOL: the target is a frozen copy of the online network."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
        self.predictor = nn.Linear(8, 8)
        self.target = copy.deepcopy(self.online)
        for parameter in self.target.parameters():
            parameter.requires_grad = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = F.normalize(self.target(x), dim=-1)
        return F.normalize(self.predictor(self.online(x)), dim=-1), target.detach()


@habit(SHAPE, lambda w: 4 * w("trunk.0", "trunk.2", "heads.age", "heads.kind"))
class ManyTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 24), nn.ReLU())
        self.heads = nn.ModuleDict({"age": nn.Linear(24, 1), "kind": nn.Linear(24, 5)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: head(z) for task, head in self.heads.items()}


@habit(
    lambda: (torch.randn(IMAGE), torch.randn(2, 12)),
    lambda w: 32 * w("stem", "conv") + 2 * w("film", "head"),
)
class Conditioned(Picture):
    """FiLM: a scale and a shift per channel, from another input."""

    def build(self) -> None:
        self.conv, self.film = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(12, 32)
        self.norm = nn.BatchNorm2d(16, affine=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.film(condition)[:, :, None, None].chunk(2, 1)
        y = F.relu(gamma * self.norm(self.conv(self.stem(x))) + beta)
        return self.head(y.mean((-2, -1)))


@habit(TEXT, lambda w: 12 * w("stem", "qkv", "out", "head") + 2 * 2 * 6 * 6 * w.size("out", 1))
class LinearBiases(Sequence):
    """ALiBi: a bias by distance, with a slope per head."""

    def build(self) -> None:
        self.qkv, self.out, self.heads = nn.Linear(16, 48), nn.Linear(16, 16), 4
        self.register_buffer("slopes", torch.tensor([2.0 ** (-2 * (i + 1)) for i in range(4)]))

    def block(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        place = torch.arange(x.size(1), device=x.device)
        bias = -(place[None] - place[:, None]).abs() * self.slopes[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(y.transpose(1, 2).flatten(-2))


@habit(
    (2, 3, 8, 8),
    lambda w: 2 * 4 * w("patches") + 2 * 5 * w("mlp") + 2 * w("head"),
)
class ClassToken(nn.Module):
    """A picture in patches, a learned token before them, and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 16) * 0.02)
        self.mlp, self.norm, self.head = nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(x + self.mlp(x))[:, 0])


@habit(
    SHAPE,
    lambda w: 4 * w("a", "b", "c") + 4 * 10 * w.size("b", 0),
    refused={"widening": "."},
)
class Quantiser(Mlp):
    """VQ-VAE: the nearest of ten learned vectors, with straight-through gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(10, 24)

    def middle(self, x: Tensor) -> Tensor:
        z = self.b(x)
        codes = self.codes.weight
        distance = z.pow(2).sum(1, keepdim=True) - 2 * z @ codes.t() + codes.pow(2).sum(1)
        nearest = self.codes(distance.argmin(1))
        return z + (nearest - z).detach() + 0.25 * (nearest - z.detach())


class Periodic(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, is_first: bool = False) -> None:
        super().__init__()
        self.omega_0, self.in_features = 30.0, inputs
        self.linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            bound = 1 / inputs if is_first else math.sqrt(6 / inputs) / self.omega_0
            self.linear.weight.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * self.linear(x))


@habit(SHAPE, lambda w: 4 * w("net.0.linear", "net.1.linear", "net.2"), rounding=1e-3)
class Siren(nn.Module):
    """Sines as activations, and weights drawn by a rule of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Periodic(12, 16, is_first=True), Periodic(16, 24), nn.Linear(24, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@habit(
    lambda: {"x": torch.randn(TEXT), "incremental_state": None, "need_weights": False},
    sequence_macs("stem", "fc1", "fc2", "head"),
)
class OptionalState(Sequence):
    """fairseq: arguments that are None or flags, and activation by the name of a function."""

    def build(self) -> None:
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.activation_fn = getattr(F, "gelu")  # noqa: B009
        self.dropout_module = nn.Dropout(0.0)

    def forward(self, x: Tensor, incremental_state: Any = None, need_weights: bool = True):
        h = self.stem(x)
        h = h + self.fc2(self.dropout_module(self.activation_fn(self.fc1(h))))
        attention = h.mean(-1) if need_weights else None
        return self.head(h), {"attn": [attention], "inner_states": None}


@habit(IMAGE, lambda w: 32 * w("stem", "conv") + 2 * (4 + 4) * w("reduce", "rise") + 2 * w("head"))
class PoolsAlongAxes(Picture):
    """Coordinate attention: means along each axis are joined, and split again after a layer."""

    def build(self) -> None:
        self.conv = nn.Conv2d(16, 16, 1)
        self.reduce, self.rise = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))

    def block(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        height, width = x.shape[-2:]
        y = torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], dim=2)
        y = self.rise(F.hardswish(self.reduce(y)))
        h, w = torch.split(y, [height, width], dim=2)
        return x * h.sigmoid() * w.permute(0, 1, 3, 2).sigmoid()
