"""The GPT-3 family (Brown et al. 2020, table 2.1) in transformers' GPT-2 architecture.

GPT-3 is GPT-2 with attention that is locally banded in every other layer. Here every layer attends
to the whole context, as in the paper on Iso-FLOP transformations. There is no dropout: the models
see each token about once.
"""

import dataclasses
from dataclasses import dataclass

from torch import nn

from isoflop.errors import IsoflopError
from isoflop.model_registry import register_model
from isoflop.optional import require

CONTEXT = 2048
_MINI_HEAD = 32
VOCAB_SIZE = 50257


@dataclass(frozen=True)
class Gpt3Config:
    """Size of a GPT-3.

    Attributes:
        layers: Transformer blocks.
        width: Width of the residual stream (d_model); the feed-forward layers are 4 times as wide.
        heads: Attention heads.
    """

    layers: int
    width: int
    heads: int


GPT3_CONFIGS = {
    "gpt3_small": Gpt3Config(12, 768, 12),
    "gpt3_medium": Gpt3Config(24, 1024, 16),
    "gpt3_large": Gpt3Config(24, 1536, 16),
    "gpt3_xl": Gpt3Config(24, 2048, 16),
    "gpt3_2.7b": Gpt3Config(32, 2560, 32),
    "gpt3_6.7b": Gpt3Config(32, 4096, 32),
    "gpt3_13b": Gpt3Config(40, 5120, 40),
    "gpt3_20b": Gpt3Config(44, 6144, 64),
    "gpt3_175b": Gpt3Config(96, 12288, 96),
}
"""The models by name.

Two rows of the published table contradict themselves, and are read as follows: XL is printed with
24 heads of size 128, which do not make its width of 2048, and has 16 here; 13B is printed with the
width 5140, which is not its 40 heads of size 128, and has 5120 here. The 20B model is not in that
table: it is the largest that the paper on Iso-FLOP transformations times (appendix E).
"""


def gpt3(config: Gpt3Config, vocab_size: int = VOCAB_SIZE, context: int = CONTEXT) -> nn.Module:
    """Build an untrained GPT-3.

    Args:
        config: Its size.
        vocab_size: Number of different tokens.
        context: Longest sequence.

    Returns:
        A `transformers.GPT2LMHeadModel`: tokens `[batch, length]` in, an output out whose `logits`
        are `[batch, length, vocab_size]`. The embedding is also the output layer.
    """
    transformers = require("transformers", "text")
    settings = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        n_inner=4 * config.width,
        activation_function="gelu_pytorch_tanh",  # GPT-2's GELU, in one operation
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        # The defaults are the ends of GPT-2's vocabulary, which a smaller one does not have.
        bos_token_id=vocab_size - 1,
        eos_token_id=vocab_size - 1,
    )
    return transformers.GPT2LMHeadModel(settings)


def _register(name: str, config: Gpt3Config) -> None:
    def build(vocab_size: int = VOCAB_SIZE, context: int = CONTEXT) -> nn.Module:
        return gpt3(config, vocab_size, context)

    build.__name__ = name
    build.__doc__ = (
        f"GPT-3 of {config.layers} layers, width {config.width} and {config.heads} heads; "
        f"context {CONTEXT}."
    )
    register_model(name, input_shape=(CONTEXT,), kind="tokens")(build)


for _name, _config in GPT3_CONFIGS.items():
    _register(_name, _config)


@register_model("gpt_mini", input_shape=(256,), kind="tokens")
def gpt_mini(vocab_size: int = 257, context: int = 256, base_width: int = 128) -> nn.Module:
    """Small GPT of 4 layers with heads of size 32, for bytes; width 128, context 256."""
    heads, rest = divmod(base_width, _MINI_HEAD)
    if rest or not heads:
        raise IsoflopError(
            f"The width of gpt_mini must be a multiple of {_MINI_HEAD}, not {base_width}."
        )
    return gpt3(Gpt3Config(layers=4, width=base_width, heads=heads), vocab_size, context)


@register_model("gpt3_small_blocks", input_shape=(256,), kind="tokens")
def gpt3_small_blocks(blocks: int = 2, vocab_size: int = 256, context: int = 256) -> nn.Module:
    """A few blocks of GPT-3 Small with a vocabulary of bytes; context 256. To time blocks."""
    small = GPT3_CONFIGS["gpt3_small"]
    return gpt3(dataclasses.replace(small, layers=blocks), vocab_size, context)
