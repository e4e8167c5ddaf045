"""Tiny configurations of the text architectures of transformers, made by field name."""

import contextlib
from typing import Any

from torch import nn

from isoflop.errors import IsoflopError
from isoflop.models.extras import require

HIDDEN = 64
INTERMEDIATE = 112
VOCAB = 131
POSITIONS = 48
TOKENS = 20
HEADS = 4
LAYERS = 2
EXPERTS = 6

_SIZES: dict[int, str] = {
    HIDDEN: "hidden_size d_model n_embd dim emb_dim embed_dim hidden_dim model_dim "
    "decoder_hidden_size embedding_dim attention_hidden_size input_embedding_size "
    "output_embedding_size word_embed_proj_dim lru_width backbone_hidden_size dim_model_base "
    "output_dim text_embed_dim projection_dim decoder_dim vision_output_dim prompt_mid_dim",
    INTERMEDIATE: "intermediate_size d_ff d_inner ffn_dim encoder_ffn_dim decoder_ffn_dim dff "
    "dim_ff n_inner ffn_hidden_size feed_forward_size intermediate_size_mlp "
    "dense_intermediate_size shared_intermediate_size speech_encoder_intermediate_size "
    "t2u_encoder_ffn_dim t2u_decoder_ffn_dim prefix_dense_intermediate_size",
    40: "embedding_size embedding_rank entity_emb_size",
    72: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size",
    VOCAB: "vocab_size vocab_size_per_layer_input decoder_vocab_size src_vocab_size "
    "tgt_vocab_size t2u_vocab_size unit_hifi_gan_vocab_size char_vocab_size "
    "entity_vocab_size audio_vocab_size unpadded_vocab_size",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_source_positions "
    "max_target_positions context_length model_max_length max_seq_len "
    "max_encoder_position_embeddings max_decoder_position_embeddings "
    "t2u_max_position_embeddings original_max_position_embeddings",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_decoder_layers num_encoder_layers speech_encoder_layers t2u_encoder_layers "
    "t2u_decoder_layers num_blocks num_layers_per_stack depth",
    HEADS: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
    "attention_heads speech_encoder_attention_heads t2u_encoder_attention_heads "
    "t2u_decoder_attention_heads swa_num_attention_heads mamba_n_heads mamba_num_heads "
    "linear_num_value_heads linear_num_heads index_n_heads",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads num_query_groups "
    "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k "
    "top_k_experts",
    EXPERTS: "num_experts num_local_experts n_routed_experts moe_num_experts",
    1: "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group "
    "num_expert_group first_k_dense_replace num_dense_layers n_groups mamba_n_groups "
    "mamba_ngroups mamba_num_groups num_nextn_predict_layers",
    HIDDEN // HEADS: "head_dim d_kv d_head kv_channels attention_head_size v_head_dim "
    "qk_nope_head_dim swa_head_dim index_head_dim linear_key_head_dim linear_value_head_dim "
    "linear_head_dim attention_head_dim mamba_d_head mamba_head_dim mamba_headdim dim_head "
    "global_head_dim",
    8: "qk_rope_head_dim rotary_dim sliding_window_size window_size attention_chunk_size "
    "sliding_window attention_window_size local_attention index_topk mamba_chunk_size "
    "chunk_size",
    24: "kv_lora_rank",
    28: "q_lora_rank",
    12: "mamba_d_state state_size ssm_state_size",
}
SIZES: dict[str, int] = {name: size for size, names in _SIZES.items() for name in names.split()}
"""Value of the integer fields, by name.

Sizes that must stay (vocabulary, positions, experts) and widths all differ, so that none is taken
for another.
"""

NEVER_NONE = {"num_key_value_heads"}

FAMILIES: dict[str, dict[str, Any]] = {}
"""What the rules do not get right, by model type."""


def tiny_config(model_type: str) -> Any:
    """Return a small configuration of a model type.

    Raises:
        Exception: The configuration class refuses every attempt.
    """
    transformers = require("transformers", "text")
    if model_type not in transformers.CONFIG_MAPPING:
        raise IsoflopError(f"{model_type!r} is no model type of transformers.")
    return _shrunk(transformers.CONFIG_MAPPING[model_type], FAMILIES.get(model_type, {}))


def tiny_model(model_type: str) -> nn.Module:
    """Build the language model of a model type: causal, else masked, else encoder-decoder."""
    transformers = require("transformers", "text")
    config = tiny_config(model_type)
    for name in ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM"):
        mapping = getattr(transformers, f"MODEL_FOR_{name}_MAPPING")
        if type(config) in mapping:
            kind = mapping[type(config)]
            kind = kind[0] if isinstance(kind, tuple) else kind
            return kind._from_config(config)
    raise IsoflopError(f"{model_type!r} has no language model.")


def _shrunk(config_class: Any, family: dict[str, Any]) -> Any:
    default: dict[str, Any] = {}
    with contextlib.suppress(Exception):
        default = dict(vars(config_class()))
    overrides: dict[str, Any] = {}
    subs = getattr(config_class, "sub_configs", {}) or {}
    for name, value in default.items():
        if name in subs:
            continue
        new = _shrunk_field(name, value)
        if new is not None:
            overrides[name] = new
    for name, sub_class in subs.items():
        value = default.get(name)
        given = family.get(name)
        if value is not None or given is not None:
            real = type(value) if hasattr(value, "to_dict") else sub_class
            overrides[name] = _shrunk(real, given or {}).to_dict()
    overrides |= {key: value for key, value in family.items() if key not in subs}
    return config_class(**overrides)


def _shrunk_field(name: str, value: Any) -> Any:
    """Return the small value of a field, or None to leave it."""
    if name in ("use_cache", "use_mamba_kernels"):
        return False
    if name.endswith("_token_id") or name in ("eos_token_id", "image_token_index"):
        return _token(name, value)
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and name in SIZES:
        return min(value, SIZES[name]) if name in _UPPER else SIZES[name]
    if isinstance(value, (list, tuple)) and name in _PER_LAYER and len(value) > LAYERS:
        return _cut(list(value))
    return None


_UPPER = set(
    "n_shared_experts num_shared_experts moe_num_shared_experts num_key_value_heads "
    "num_nextn_predict_layers first_k_dense_replace num_dense_layers n_group topk_group".split()
)
_PER_LAYER = {
    "layer_types", "mlp_layer_types", "layers_block_type", "block_types", "no_rope_layers",
    "indexer_types", "attention_layers", "layer_rope_theta", "attn_layers",
}  # fmt: skip


def _cut(values: list[Any]) -> list[Any]:
    """Return `LAYERS` of the values, of different kinds where there are."""
    kinds = list(dict.fromkeys(map(repr, values)))
    if len(kinds) > 1:
        texts = list(map(repr, values))
        return [values[i] for i in sorted(texts.index(k) for k in kinds[:LAYERS])]
    return values[:LAYERS]


_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}


def _token(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in _TOKENS:
        return [_TOKENS[name]] if isinstance(value, list) else _TOKENS[name]
    if isinstance(value, int) and value >= VOCAB:
        return VOCAB - 1 - sum(map(ord, name)) % 20
    return None
