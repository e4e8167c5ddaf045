"""Small models of the kinds that transforms must handle, for tests all over the suite."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class Vgg(nn.Module):
    """Convolutions, a flatten that multiplies a width by a constant, and a two-layer head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Gated(nn.Module):
    """Grouped and transposed convolutions, squeeze-excite, concatenation and a split."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 24)
        self.squeeze = nn.Conv2d(24, 6, 1)
        self.excite = nn.Conv2d(6, 24, 1)
        self.join = nn.Conv2d(40, 32, 1)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norm(self.grouped(x))
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = torch.cat([x, y * torch.sigmoid(gate)], 1)
        a, b = self.join(y).chunk(2, 1)
        return self.head(F.relu(self.up(a * b)))


class Volume(nn.Module):
    """One- and three-dimensional convolutions with dilation and stride."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 8, 3, padding=1)
        self.second = nn.Conv3d(8, 16, (1, 3, 3), stride=(1, 2, 2), padding=(0, 2, 2), dilation=2)
        self.third = nn.Conv1d(16, 24, 3, padding="same", padding_mode="circular")
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.third(x.flatten(2))).mean(2))


class Encoder(nn.Module):
    """A classifier of sequences: PyTorch's own transformer encoder between two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)).mean(1))


class Tied(nn.Module):
    """Token ids through a block with self- and cross-attention; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 32)
        self.block = nn.TransformerDecoderLayer(32, 4, 64, activation="gelu")
        self.head = nn.Linear(32, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).transpose(0, 1)
        causal = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.block(x, x, tgt_mask=causal).transpose(0, 1))


class FromFloats(nn.Module):
    """Reads token ids off floats, so that every model here takes a tensor of a given shape.

    The outputs of Hugging Face's models become plain logits.
    """

    def __init__(self, model: nn.Module, vocabulary: int = 16) -> None:
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary

    def forward(self, x: Tensor) -> Tensor:
        output = self.model((x.abs() * self.vocabulary).long() % self.vocabulary)
        return output if isinstance(output, Tensor) else output.logits


def gpt2() -> nn.Module:
    """A tiny GPT-2 of Hugging Face, whose layers are `Conv1D` and whose head is the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=16,
        n_positions=8,
        n_embd=32,
        n_layer=2,
        n_head=4,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    """A tiny Llama of Hugging Face, with fewer heads of keys and values than of queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


class Experts(nn.Module):
    """Three experts that share a tensor; each row goes to the next of them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 3
        self.first = nn.Linear(8, 16)
        self.up = nn.Parameter(torch.randn(3, 16, 32))
        self.down = nn.Parameter(torch.randn(3, 32, 16))
        self.middle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        ends = torch.tensor([1, 3, len(x)], dtype=torch.int32)
        x = F.relu(F.grouped_mm(x, self.up, offs=ends))
        return self.head(self.middle(F.grouped_mm(x, self.down, offs=ends)))


class CodeBook(nn.Module):
    """Slices up to a width and puts a parameter in the place of some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.out_chs = 16
        self.embedding = nn.Embedding(16, 16)
        self.missing = nn.Parameter(torch.randn(16))
        self.body = nn.Linear(16, 20)
        self.out = nn.Linear(20, 16)
        self.head = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x[tokens == 0] = self.missing
        x = x + self.out(F.relu(self.body(x)))[..., : self.out_chs]
        return self.head(x)


def mlp() -> nn.Module:
    """Multi-layer perceptron with LayerNorm and biases."""
    return nn.Sequential(
        nn.Linear(20, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 48),
        nn.ReLU(),
        nn.Linear(48, 5),
    )


def cifar_resnet() -> nn.Module:
    """A narrow CIFAR ResNet with its last norms at zero."""
    from isoflop.lab.models.resnet import resnet18_cifar

    return resnet18_cifar(num_classes=10, base_width=8)


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (2, 20)),
    "vgg": (Vgg, (1, 3, 16, 16)),
    "gated": (Gated, (1, 3, 8, 8)),
    "volume": (Volume, (1, 1, 3, 8, 8)),
    "cifar_resnet": (cifar_resnet, (1, 3, 16, 16)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (1, 3, 64, 64)),
    "resnext": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            [1, 1, 1, 1],
            num_classes=10,
            groups=8,
            width_per_group=4,
        ),
        (1, 3, 64, 64),
    ),
    "mobilenet_v2": (
        lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25),
        (1, 3, 64, 64),
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(
            image_size=32,
            patch_size=8,
            num_layers=2,
            num_heads=4,
            hidden_dim=32,
            mlp_dim=64,
            num_classes=10,
        ),
        (1, 3, 32, 32),
    ),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2, 1, 1), 16, num_classes=10),
        (1, 3, 64, 64),
    ),
    "encoder": (Encoder, (1, 6, 12)),
    "code_book": (lambda: FromFloats(CodeBook()), (1, 6)),
    "tied": (lambda: FromFloats(Tied()), (1, 6)),
    "gpt2": (lambda: FromFloats(gpt2()), (1, 6)),
    "llama": (lambda: FromFloats(llama()), (1, 6)),
}
"""Name to `(constructor, input shape)`."""

WIDENED = {**ZOO, "experts": (Experts, (10, 8))}
"""Those and one whose weights are mostly outside of layers, so that only their widths can grow."""
