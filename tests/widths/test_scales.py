"""Numbers that are a power of a width follow it, and others stay."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import isoflop
from isoflop.errors import WideningError

HEADS, WIDTH = 4, 32
HEAD = WIDTH // HEADS


class Attention(nn.Module):
    """Attention with a way of scaling its scores; beside it numbers that equal the scale by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 4)
        self.dropout = self.eps = self.negative_slope = HEAD**-0.5
        self.setup()

    def setup(self) -> None:
        self.scale: Any = HEAD**-0.5

    def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q @ k.mT * self.scale

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        weights = F.leaky_relu(self.scores(q, k), self.negative_slope).softmax(-1)
        return F.dropout(weights, self.dropout, self.training) @ v + self.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        q, k, v = (
            f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


class OnQueries(Attention):
    def scores(self, q, k):
        return (q * self.scale) @ k.mT


class OnBoth(Attention):
    def setup(self):
        self.scale = HEAD**-0.25

    def scores(self, q, k):
        return (q * self.scale) @ (k * self.scale).mT


class Divided(Attention):
    def setup(self):
        self.scale = math.sqrt(HEAD)

    def scores(self, q, k):
        return torch.einsum("bhid,bhjd->bhij", q, k) / self.scale


class Reciprocal(Attention):
    def setup(self):
        self.scale = math.sqrt(HEAD)

    def scores(self, q, k):
        return torch.einsum("b h i d, b h j d -> b h i j", q, k) * (1 / self.scale)


class InPlace(Attention):
    def scores(self, q, k):
        scores = q @ k.mT
        scores *= self.scale
        return scores


class Reciprocals(Attention):
    def setup(self):
        self.scale = 1 / HEAD


class OfTheWholeWidth(Attention):
    def setup(self):
        self.scale = WIDTH**-0.5


class Fused(Attention):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)


class Batched(Attention):
    def scores(self, q, k):
        batch, heads, length, _ = q.shape
        q, k = q.flatten(0, 1), k.flatten(0, 1)
        zero = q.new_zeros(1)
        scores = torch.baddbmm(zero, q, k.mT, beta=0, alpha=self.scale)
        return scores.view(batch, heads, length, length)


class Buffer(Attention):
    def setup(self):
        self.register_buffer("scale", torch.tensor(HEAD**-0.5))

    def scores(self, q, k):
        return q @ k.mT * self.scale.to(q.dtype)


class PlainTensor(Attention):
    def setup(self):
        self.scale = torch.sqrt(torch.FloatTensor([HEAD]))

    def scores(self, q, k):
        return q @ k.mT / self.scale.to(q.device)


class Learned(Attention):
    def setup(self):
        self.scale = nn.Parameter(torch.tensor(HEAD**-0.5))


class InTuple(Attention):
    def setup(self):
        self.scale = (HEAD**-0.5, 1.0)

    def scores(self, q, k):
        return q @ k.mT * self.scale[0]


class InDict(Attention):
    def setup(self):
        self.scale = {"scale": HEAD**-0.5, "kind": "dot"}

    def scores(self, q, k):
        return q @ k.mT * self.scale["scale"]


class Summed(Attention):
    def scores(self, q, k):
        return (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) * self.scale


class Apart(Attention):
    """The scale lies in a module of its own, which has no sizes."""

    class Dot(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = WIDTH**0.5

        def forward(self, q, k):
            return q @ k.mT / self.temperature

    def setup(self):
        self.dot = self.Dot()

    def scores(self, q, k):
        return self.dot(q, k)

    @property
    def scale(self):
        return self.dot.temperature


def widened(model: nn.Module, inputs: Any = (2, 6, 12)) -> Any:
    config = isoflop.SparseWide(0.75, dense_ends=False)
    return isoflop.transform(model, config, example_inputs=inputs)[0]


def number(scale: Any) -> float:
    """Return the one number in what a model keeps as its scale."""
    scale = scale[0] if isinstance(scale, tuple) else scale
    scale = scale["scale"] if isinstance(scale, dict) else scale
    return scale.item() if isinstance(scale, torch.Tensor) else scale


@pytest.mark.parametrize("kind", [Attention, *Attention.__subclasses__()], ids=lambda k: k.__name__)
def test_a_scale_of_attention_follows_the_width(kind):
    dense = kind()
    wide = widened(dense)
    power = math.log(number(dense.scale), HEAD)
    of_all = kind in (OfTheWholeWidth, Apart)
    power = math.log(number(dense.scale), WIDTH) if of_all else power
    size = 2 * (WIDTH if of_all else HEAD)
    assert number(wide.scale) == pytest.approx(size**power, rel=1e-6)
    assert type(wide.scale) is type(dense.scale)
    for name in ("dropout", "eps", "negative_slope"):
        assert vars(wide)[name] == HEAD**-0.5
    assert wide(torch.randn(2, 6, 12)).isfinite().all()
    # The dense model is as it was.
    assert type(number(dense.scale)) is float


def test_a_scale_that_is_computed_in_the_forward_pass_needs_nothing():
    class Computed(Attention):
        def scores(self, q, k):
            return q @ k.mT * (1 / math.sqrt(q.shape[-1]))

    assert widened(Computed()).scale == HEAD**-0.5


@pytest.mark.parametrize("constant", [HEAD**-0.5, HEAD**0.5, 1 / HEAD])
def test_a_scale_that_is_no_attribute_is_refused(constant):
    class Constant(Attention):
        def scores(self, q, k):
            return q @ k.mT * constant

    with pytest.raises(WideningError, match=r"In Constant \(mul\), .* comes from no attribute"):
        widened(Constant())


def test_the_root_of_a_scale_is_refused_as_it_has_no_name():
    class Root(Attention):
        def scores(self, q, k):
            return (q * math.sqrt(self.scale)) @ (k * math.sqrt(self.scale)).mT

    with pytest.raises(WideningError, match="comes from no attribute"):
        widened(Root())


class Embedding(nn.Module):
    """Numbers that are powers of the width 36, of which names say which are scales."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 36)
        self.hidden = nn.Linear(36, 36)
        self.head = nn.Linear(36, 5)
        self.embed_scale = math.sqrt(36)
        self.weight_scale = 1 / math.sqrt(36)
        self.res_scale = self.layer_scale = self.drop_rate = self.p = self.weight = 1 / 6

    def forward(self, ids):
        x = self.embedding(ids) * self.embed_scale
        x = x + self.layer_scale * F.linear(x, self.hidden.weight * self.weight_scale)
        x = x * self.res_scale * self.weight
        return self.head(F.dropout(x, self.p, self.training))


def test_what_is_no_product_of_activations_needs_the_name_of_a_scale():
    wide = widened(Embedding(), (torch.arange(12).view(2, 6),))
    assert wide.embed_scale == math.sqrt(72)
    assert wide.weight_scale == 72**-0.5
    for name in ("res_scale", "layer_scale", "drop_rate", "p", "weight"):
        assert getattr(wide, name) == 1 / 6


def test_a_rule_tells_a_scale_or_a_constant(monkeypatch):
    monkeypatch.setattr("isoflop.flops.rules._RULES", {})

    class Named(Embedding):
        pass

    isoflop.register_widening_rule(Named, widths=["weight"], constants=["embed_scale"])
    wide = widened(Named(), (torch.arange(12).view(2, 6),))
    assert wide.weight == 72**-0.5
    assert wide.embed_scale == 6.0


IDS = torch.arange(12).view(2, 6) % 16
SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
BART: dict[str, Any] = {
    "vocab_size": 16,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 16,
    "scale_embedding": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Llama", "Bert", "GPT2", "Bart", "GPTJ"])
def test_language_models(name, attention):
    config_class = getattr(transformers, f"{name}Config")
    options = BART if name == "Bart" else SMALL
    if name == "GPTJ":
        options = options | {"rotary_dim": 4}
        if attention == "sdpa":
            pytest.skip("it has no fused attention")
    config = config_class(**options, attn_implementation=attention)
    torch.manual_seed(0)
    kind = {
        "Bert": "BertForMaskedLM",
        "Bart": "BartForConditionalGeneration",
        "GPT2": "GPT2LMHeadModel",
    }
    dense = getattr(transformers, kind.get(name, f"{name}ForCausalLM"))(config)
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if name == "Bart" else {})
    wide = widened(dense, inputs)
    for path, module in dense.named_modules():
        for attribute in ("scaling", "scale_attn", "embed_scale"):
            if attribute in vars(module):
                other = getattr(wide.get_submodule(path), attribute)
                inverse, size = attribute == "scaling", WIDTH if "embed" in attribute else HEAD
                power = -0.5 if inverse else 0.5
                assert getattr(module, attribute) == pytest.approx(size**power, rel=1e-6)
                assert other == pytest.approx((2 * size) ** power, rel=1e-6)
    assert not any(type(v).__module__.startswith("isoflop") for v in vars(config).values())
    assert not any(isinstance(v, torch.SymInt) for v in vars(config).values())
    with torch.no_grad():
        spread = [m.eval()(**inputs).logits.std().item() for m in (dense, wide)]
    assert 0.5 < spread[1] / spread[0] < 3.0


@pytest.mark.parametrize(
    ("name", "options", "fused"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, True),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, False),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (1, 1)}, False),
    ],
)
def test_vision_transformers(name, options, fused):
    timm = pytest.importorskip("timm")
    from timm.layers import set_fused_attn  # pyright: ignore[reportPrivateImportUsage]

    set_fused_attn(fused)
    try:
        dense = timm.create_model(name, num_classes=10, **options)
    finally:
        set_fused_attn(True)
    wide = widened(dense, (1, 3, options["img_size"], options["img_size"]))
    scales = {path: m.scale for path, m in dense.named_modules() if "scale" in vars(m)}
    assert scales
    for path, scale in scales.items():
        assert wide.get_submodule(path).scale == pytest.approx(scale / math.sqrt(2))
