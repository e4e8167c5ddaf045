import pytest
import torch
from tools.zoo.build import build, forward, inputs_for
from tools.zoo.tiny import tiny_config

from isoflop.errors import IsoflopError
from tools.zoo import sizes

FAMILIES = ["gpt2", "llama", "bert", "t5", "mistral", "qwen2", "gpt_neox", "mixtral"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_runs(family):
    model = build(f"transformers:{family}", meta=False).eval()
    assert sum(p.numel() for p in model.parameters()) < 500_000
    for batch in (1, 2):
        inputs = inputs_for(f"transformers:{family}", model, batch=batch)
        with torch.no_grad():
            logits = forward(model, inputs)[0]
        tokens = sizes.TARGET_TOKENS if family == "t5" else sizes.TOKENS
        assert logits.shape == (batch, tokens, sizes.VOCAB)
        assert logits.isfinite().all()


def test_sizes_go_by_field_name():
    config = tiny_config("mixtral")
    assert (config.hidden_size, config.intermediate_size) == (sizes.HIDDEN, sizes.INTERMEDIATE)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert (config.num_local_experts, config.num_experts_per_tok) == (sizes.EXPERTS, 2)
    assert config.num_hidden_layers == 2
    assert not config.use_cache


def test_layers_are_of_different_kinds():
    assert len(set(tiny_config("gemma3_text").layer_types)) == 2


def test_nested_configurations_are_small_too():
    config = tiny_config("qwen3_5")
    assert config.text_config.hidden_size == sizes.HIDDEN
    assert config.vision_config.hidden_size == sizes.HIDDEN


def test_a_type_that_is_no_language_model_says_why():
    with pytest.raises(IsoflopError, match="sound"):
        build("transformers:voxtral_realtime", meta=True)
    with pytest.raises(IsoflopError, match="no model type"):
        build("transformers:gtp2", meta=True)
