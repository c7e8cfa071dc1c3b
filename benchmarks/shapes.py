"""Shapes that are measured with random weights, as transformers' `Qwen3NextConfig` takes them.

The published model's proportions, scaled down: head dimensions, top-10 routing and the layer
pattern are the same. All use qcn-nano's tokenizer, and therefore its vocabulary.
"""

from typing import Any, Final

COMMON: Final[dict[str, Any]] = {
    "vocab_size": 8192,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 8192,
    "linear_conv_kernel_dim": 4,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

# 185.9 M parameters; a decoded token reads 53.9 M of them: 10 of 96 experts, no embedding table.
RANDOM_186M: Final[dict[str, Any]] = COMMON | {
    "hidden_size": 640,
    "intermediate_size": 1280,  # required by the config class; no layer is dense
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_experts": 96,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}

# For the harness's own test: seconds, not figures.
TOY: Final[dict[str, Any]] = COMMON | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
