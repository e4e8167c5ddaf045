"""Text architectures whose tiny configuration needs more than the rules of `tools.zoo.tiny`."""

from typing import Any

from tools.zoo.sizes import EXPERTS, HEADS, HIDDEN, INTERMEDIATE, LAYERS, TOKENS, VOCAB

_ROUTED = {
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_hash_byte_group_vocab": 97,
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_config": {"hidden_size_global": HIDDEN},
        "decoder_config": {"hidden_size_global": HIDDEN},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": None,
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": _ROUTED,
    "dots1": _ROUTED,
    "dots3_note": {
        "vision_config": {
            "adapter_in_dim": HIDDEN,
            "adapter_out_dim": HIDDEN,
            "mlp_layer_types": ["dense", "sparse"],
            "per_layer_config": {},
        },
        "audio_config": {
            "adapter_input_size": HIDDEN,
            "adapter_out_dim": HIDDEN,
            "downsample_hidden_size": 24,
        },
    },
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 24},
    "esm": {"vocab_size": VOCAB, "pad_token_id": 0, "mask_token_id": 3},
    "esmc": {"num_key_value_heads": HEADS},
    "falcon_h1": {"mamba_d_ssm": 2 * HIDDEN},
    "gemma3n_text": {
        "altup_num_inputs": 2,
        "num_kv_shared_layers": 0,
        "intermediate_size": [INTERMEDIATE] * LAYERS,
        "activation_sparsity_pattern": [0.5, 0.0],
    },
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        }
    },
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 0}},
    "hunyuan_v1_dense": {"head_dim": HIDDEN // HEADS},
    "hunyuan_v1_moe": {"head_dim": HIDDEN // HEADS},
    "led": {"attention_window": [8, 8]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "longformer": {"attention_window": [8, 8]},
    "mamba2": {"head_dim": 2 * HIDDEN // HEADS},
    "ministral": {"head_dim": HIDDEN // HEADS},
    "musicgen": {"decoder": {"num_codebooks": 1}},
    "musicgen_melody": {"decoder": {"num_codebooks": 1}},
    "nemo_speechlm": {
        "audio_config": {"diarization_config": {"head_config": {"audio_hidden_size": HIDDEN}}}
    },
    "nemotron": {"num_key_value_heads": 2},
    "nystromformer": {"conv_kernel_size": 3},
    "perceiver": {"num_latents": 24, "num_self_attends_per_block": LAYERS},
    "qwen4_exp_text": {
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HIDDEN // HEADS,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 20,
    },
    "prophetnet": {"num_buckets": TOKENS // HEADS},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_embds": False,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "squeezebert": {"embedding_size": HIDDEN},
    "vibevoice_acoustic_tokenizer_encoder": {
        "num_filters": 4,
        "downsampling_ratios": [2, 2],
        "depths": [1, 1, 1],
    },
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 4096},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": {"n_mamba_heads": HEADS},
    "zaya": {"num_experts_per_tok": 1},
}
"""Values by model type, of nested configurations too."""

UNFIT: dict[str, str] = {
    "gemma4_assistant": "it reads the keys and values of another model",
    "gemma4_unified_assistant": "it reads the keys and values of another model",
    "voxtral_realtime": "it takes sound, not text alone",
}
"""Model types that are no language models by themselves, with the reason."""
