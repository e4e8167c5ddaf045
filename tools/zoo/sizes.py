"""Sizes of the tiny text models, by the names that configurations give them.

Sizes that must stay (vocabulary, positions, experts, tokens) and widths all differ, so that none is
taken for another by chance.
"""

HIDDEN = 64
INTERMEDIATE = 112
VOCAB = 131
POSITIONS = 48
TOKENS = 20
TARGET_TOKENS = 14
HEADS = 4
GROUPS = 2
LAYERS = 2
EXPERTS = 6

FIXED = frozenset(
    {
        1,
        GROUPS,
        3,
        HEADS,
        EXPERTS,
        EXPERTS + 1,
        EXPERTS + 2,
        TARGET_TOKENS,
        TOKENS,
        POSITIONS,
        VOCAB,
    }
)
"""Sizes that a transform must leave as they are."""

_NAMES: tuple[tuple[int, str], ...] = (
    (
        HIDDEN,
        "hidden_size d_model n_embd dim emb_dim embed_dim hidden_dim model_dim d_latents "
        "decoder_hidden_size embedding_dim input_embedding_size output_embedding_size "
        "word_embed_proj_dim lru_width backbone_hidden_size output_dim text_embed_dim "
        "projection_dim decoder_dim",
    ),
    (
        INTERMEDIATE,
        "intermediate_size d_ff d_inner ffn_dim encoder_ffn_dim decoder_ffn_dim dff dim_ff n_inner "
        "ffn_hidden_size feed_forward_size intermediate_size_mlp dense_intermediate_size "
        "shared_intermediate_size speech_encoder_intermediate_size t2u_encoder_ffn_dim "
        "t2u_decoder_ffn_dim prefix_dense_intermediate_size",
    ),
    (40, "embedding_size embedding_rank entity_emb_size intra_bottleneck_size"),
    (
        72,
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
        "moe_shared_expert_intermediate_size shared_experts_intermediate_size",
    ),
    (
        VOCAB,
        "vocab_size vocab_size_per_layer_input decoder_vocab_size src_vocab_size tgt_vocab_size "
        "t2u_vocab_size unit_hifi_gan_vocab_size char_vocab_size entity_vocab_size "
        "audio_vocab_size unpadded_vocab_size pronunciation_vocab_size shape_vocab_size",
    ),
    (
        POSITIONS,
        "max_position_embeddings n_positions n_ctx max_source_positions max_target_positions "
        "context_length model_max_length max_seq_len max_encoder_position_embeddings "
        "max_decoder_position_embeddings t2u_max_position_embeddings "
        "original_max_position_embeddings",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
        "num_decoder_layers num_encoder_layers speech_encoder_layers t2u_encoder_layers "
        "t2u_decoder_layers num_blocks num_layers_per_stack depth",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
        "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
        "attention_heads speech_encoder_attention_heads t2u_encoder_attention_heads "
        "t2u_decoder_attention_heads swa_num_attention_heads mamba_n_heads mamba_num_heads "
        "linear_num_value_heads linear_num_heads index_n_heads",
    ),
    (
        GROUPS,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads num_query_groups "
        "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k "
        "top_k_experts",
    ),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (
        1,
        "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group "
        "num_expert_group first_k_dense_replace num_dense_layers n_groups mamba_n_groups "
        "mamba_ngroups mamba_num_groups num_nextn_predict_layers",
    ),
    (
        HIDDEN // HEADS,
        "head_dim d_kv d_head kv_channels attention_head_size v_head_dim qk_nope_head_dim "
        "swa_head_dim index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim "
        "attention_head_dim mamba_head_dim dim_head global_head_dim",
    ),
    (
        8,
        "qk_rope_head_dim rotary_dim sliding_window_size window_size attention_chunk_size "
        "sliding_window attention_window_size local_attention index_topk mamba_chunk_size "
        "chunk_size",
    ),
    (2 * HIDDEN // HEADS, "mamba_d_head mamba_headdim"),
    (24, "kv_lora_rank"),
    (28, "q_lora_rank"),
    (12, "mamba_d_state state_size ssm_state_size"),
)
SIZES: dict[str, int] = {name: size for size, names in _NAMES for name in names.split()}
"""Value of the integer fields of a configuration, by name."""

AT_MOST = frozenset(
    {
        "n_shared_experts",
        "num_shared_experts",
        "moe_num_shared_experts",
        "num_key_value_heads",
        "num_nextn_predict_layers",
        "first_k_dense_replace",
        "num_dense_layers",
        "n_group",
        "topk_group",
    }
)
"""Fields that are not raised: their zero or one means that a feature is off."""

PER_LAYER = frozenset(
    {
        "layer_types",
        "mlp_layer_types",
        "layers_block_type",
        "block_types",
        "no_rope_layers",
        "indexer_types",
        "attention_layers",
        "layer_rope_theta",
        "attn_layers",
    }
)
"""Fields that are lists with an entry for each layer."""

TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
