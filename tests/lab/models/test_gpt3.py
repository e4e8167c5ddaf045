import pytest
import torch

import isoflop.flops.table
from isoflop.lab.models import GPT3_CONFIGS, Gpt3Config, gpt3
from isoflop.model_registry import MODELS
from isoflop.model_specs import build_model, default_example_shape, example_inputs

CONTEXT, VOCAB = 2048, 50257
BILLIONS = {
    "gpt3_small": 0.125,
    "gpt3_medium": 0.35,
    "gpt3_large": 0.76,
    "gpt3_xl": 1.3,
    "gpt3_2.7b": 2.7,
    "gpt3_6.7b": 6.7,
    "gpt3_13b": 13.0,
    "gpt3_20b": 20.0,
    "gpt3_175b": 175.0,
}
"""Sizes as published."""


@pytest.mark.parametrize("name", GPT3_CONFIGS)
def test_parameters(name):
    row = GPT3_CONFIGS[name]
    model = build_model(f"isoflop:{name}", meta=True)
    count = sum(p.numel() for p in model.parameters())
    # Per block 12 d² weights (4 of attention, 8 of the MLP), 9 d biases and 4 d in two norms.
    blocks = row.layers * (12 * row.width**2 + 13 * row.width)
    assert count == blocks + (VOCAB + CONTEXT) * row.width + 2 * row.width
    # Published: 1.3B for XL and 13B, whose printed sizes would make neither.
    assert count / 1e9 == pytest.approx(BILLIONS[name], rel=0.02)
    assert row.width % row.heads == 0


@pytest.mark.parametrize("name", ["gpt3_small", "gpt3_20b"])
def test_macs(name):
    row = GPT3_CONFIGS[name]
    spec = f"isoflop:{name}"
    model = build_model(spec, meta=True)
    inputs = example_inputs(spec, default_example_shape(spec), meta=True)
    table = isoflop.profile(model, inputs)
    per_token = row.layers * (12 * row.width**2 + 2 * CONTEXT * row.width) + VOCAB * row.width
    assert table.macs == CONTEXT * per_token


def test_names_and_texts():
    assert list(BILLIONS) == list(GPT3_CONFIGS)
    text = "GPT-3 of 24 layers, width 2048 and 16 heads; context 2048."
    assert MODELS.get("gpt3_xl").__doc__ == text


def test_small_one_trains():
    torch.manual_seed(0)
    model = gpt3(Gpt3Config(layers=2, width=16, heads=2), vocab_size=50, context=12)
    tokens = torch.randint(50, (2, 12))
    out = model(tokens, labels=tokens)
    assert out.logits.shape == (2, 12, 50)
    assert out.loss.item() == pytest.approx(torch.tensor(50.0).log().item(), rel=0.05)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    tied = model.get_parameter("transformer.wte.weight")
    assert model.get_submodule("lm_head")._parameters["weight"] is tied
    assert "past_key_values" not in out


def test_small_one_is_causal_and_without_dropout():
    model = gpt3(Gpt3Config(layers=2, width=16, heads=2), vocab_size=50, context=12).train()
    tokens = torch.randint(50, (1, 12))
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 50
    with torch.no_grad():
        before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_vocabulary_and_context_are_options_of_the_entries():
    with torch.device("meta"):
        model = MODELS.get("gpt3_small")(vocab_size=100, context=64)
    assert model.get_parameter("transformer.wte.weight").shape == (100, 768)
    assert model.get_parameter("transformer.wpe.weight").shape == (64, 768)
