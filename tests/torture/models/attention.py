"""Attention and recurrence."""

# People write such code; type checkers do not like it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalCall=false
# pyright: reportOptionalSubscript=false, reportPrivateImportUsage=false

import math
from typing import Any

import torch
import torch.nn.functional as F
from tests.torture.habit import habit
from torch import Tensor, nn
from torch.nn.utils import rnn

TEXT = (2, 6, 12)
"""Two sequences of six vectors."""


def attention_macs(w, layer: str = "") -> int:
    """Return the MACs of scores and sums: two products of (6, width) and (6, width) per sample."""
    return 2 * 2 * 6 * 6 * w.size(layer or "out", 1)


class Block(nn.Module):
    """A stem, attention written by hand, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.num_heads = 4
        self.scale = (16 // self.num_heads) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = self.turned(qkv[0]), self.turned(qkv[1]), qkv[2]
        scores = (q * self.scale) @ k.transpose(-2, -1) + self.bias(length)
        y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, width))

    def turned(self, x: Tensor) -> Tensor:
        return x

    def bias(self, length: int) -> Any:
        return 0.0


def block_macs(w) -> int:
    return 12 * w("stem", "qkv", "out", "head") + attention_macs(w)


@habit(TEXT, block_macs)
class OwnAttention(Block):
    pass


@habit(TEXT, block_macs)
class RelativeBias(Block):
    """Swin's table of biases, read by an index."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(0.1 * torch.randn(2 * 6 - 1, self.num_heads))
        places = torch.arange(6)
        self.register_buffer("index", places[:, None] - places + 5, persistent=False)

    def bias(self, length: int) -> Tensor:
        return self.table[self.index.flatten()].view(length, length, -1).permute(2, 0, 1)


@habit(TEXT, block_macs)
class Rotary(Block):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        frequencies = 100.0 ** (-torch.arange(0, 8, 2) / 8)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] * self.frequencies
        cos, sin = torch.cat([angles] * 2, -1).cos(), torch.cat([angles] * 2, -1).sin()
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin


@habit(TEXT, block_macs)
class ByPyTorchsFunction(Block):
    """With its own scale, and causal."""

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


@habit(TEXT, lambda w: 12 * w("stem", "q", "kv", "out", "head") + attention_macs(w))
class GroupedQueries(Block):
    """Four heads of queries share two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(16, 16), nn.Linear(16, 16)
        self.num_kv_heads, self.head_dim = 2, 4
        del self.qkv

    def attend(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        kv = self.kv(x).view(batch, length, 2, self.num_kv_heads, self.head_dim)
        k, v = (t.transpose(1, 2).repeat_interleave(2, 1) for t in kv.unbind(2))
        y = (q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class WithModule(nn.Module):
    """A module of PyTorch between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def multihead_macs(w, name: str) -> int:
    products = 2 * 2 * 6 * 6 * w.size(f"{name}.out_proj", 1)
    return 12 * w(f"{name}.in_proj_weight", f"{name}.out_proj") + products


@habit(
    TEXT,
    lambda w: 12 * w("stem", "head") + multihead_macs(w, "attention"),
)
class Multihead(WithModule):
    """Masks of both kinds; the weights of the attention are an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        padded = torch.zeros(x.shape[:2], dtype=torch.bool)
        padded[:, -1] = True
        y, weights = self.attention(x, x, x, key_padding_mask=padded, attn_mask=causal)
        return y + weights.mean()


def layer_macs(w, name: str) -> int:
    return multihead_macs(w, f"{name}.self_attn") + 12 * w(f"{name}.linear1", f"{name}.linear2")


@habit(
    TEXT,
    lambda w: 12 * w("stem", "head") + layer_macs(w, "layer"),
)
class EncoderLayer(WithModule):
    """In evaluation, PyTorch takes a fast path that reads the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.1)

    def body(self, x: Tensor) -> Tensor:
        return self.layer(x)


@habit(
    TEXT,
    lambda w: 12 * w("stem", "head") + layer_macs(w, "encoder.layers.0"),
    refused={"export": "exported"},
)
class EncoderWithMask(WithModule):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def body(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.encoder(x, mask=mask)


@habit(
    TEXT,
    lambda w: (
        12 * w("stem", "head")
        + layer_macs(w, "body_.encoder.layers.0")
        + layer_macs(w, "body_.decoder.layers.0")
        + multihead_macs(w, "body_.decoder.layers.0.multihead_attn")
    ),
    refused={"export": "exported"},
)
class WholeTransformer(WithModule):
    def __init__(self) -> None:
        super().__init__()
        self.body_ = nn.Transformer(16, 4, 1, 1, 24, dropout=0.0, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.body_(x, x.flip(1), tgt_mask=mask)


@habit(
    TEXT,
    lambda w: 12 * w("stem", "head") + 12 * recurrent(w, "lstm", "l0", "l0_reverse"),
    refused={"low_rank": "parts that stay dense"},
)
class Lstm(WithModule):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def body(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


def recurrent(w, name: str, *layers: str) -> int:
    """Return the weights of a recurrent module, each of which every step multiplies by."""
    return w(*(f"{name}.weight_{kind}_{layer}" for kind in ("ih", "hh") for layer in layers))


@habit(
    lambda: {"x": torch.randn(TEXT), "lengths": torch.tensor([6, 4])},
    lambda w: 12 * w("stem") + 10 * recurrent(w, "gru", "l0") + 2 * w("head"),
    scales=False,
    refused={"export": "exported", "low_rank": "stay dense"},
)
class PackedInside(WithModule):
    """Sequences of six and four steps; the padding costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 16, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(self.stem(x), lengths, batch_first=True)
        _, last = self.gru(packed)
        return self.head(last[0])


def packed() -> Any:
    return (rnn.pack_sequence([torch.randn(6, 12), torch.randn(4, 12)]),)


@habit(
    packed,
    lambda w: 10 * w("stem", "head") + 10 * recurrent(w, "lstm", "l0"),
    refused={"export": "exported", "low_rank": "stay dense"},
)
class PackedAsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        self.lstm = nn.LSTM(16, 16)

    def forward(self, x: Any) -> Tensor:
        y, _ = self.lstm(x._replace(data=self.stem(x.data)))
        return self.head(y.data)


@habit(
    TEXT,
    lambda w: 2 * 6 * w("cell.weight_ih", "cell.weight_hh", "stem") + 2 * w("head"),
    refused={"low_rank": "dense cost .* for cell.weight_hh"},
)
class CellInLoop(WithModule):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.stem(x).unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0])


@habit(
    lambda: (torch.randn(2, 12), (torch.randn(2, 16), torch.randn(2, 16))),
    lambda w: 2 * w("cell.weight_ih", "cell.weight_hh", "a", "head"),
    refused={"widening": "cell"},
)
class StateAsInput(nn.Module):
    """One step of a recurrence: the state that comes in has the width of the state that goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.head = nn.Linear(12, 16), nn.LSTMCell(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        h, c = self.cell(F.relu(self.a(x)), state)
        return self.head(h), (h, c)


@habit(
    lambda: torch.randint(20, (2, 6)),
    lambda w: bert_macs(w),
    loss=lambda o: (o.logits - 1).square().mean(),
)
def TransformersBert() -> nn.Module:  # noqa: N802
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=8,
            initializer_range=0.3,
            hidden_dropout_prob=0.0,
        )
    )


def bert_macs(w) -> int:
    layer = "bert.encoder.layer.0"
    attention = f"{layer}.attention"
    weights = [f"{attention}.self.{name}" for name in ("query", "key", "value")]
    weights += [f"{attention}.output.dense", f"{layer}.intermediate.dense", f"{layer}.output.dense"]
    products = 2 * 2 * 6 * 6 * w.size(f"{attention}.output.dense", 1)
    return 12 * w(*weights) + products + 2 * w("bert.pooler.dense", "classifier")
