"""The shape of qcn-nano and its initial values; the parameters live in transformers' own module."""

import torch
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM


def nano_config(vocab_size: int, **changes: object) -> Qwen3NextConfig:
    """The shape of qcn-nano: the published model's proportions, some 4,000 times smaller.

    About 6.5 M parameters are active per token, the tied embedding (2 M) included; 17.6 M in all.
    """
    sizes: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "full_attention_interval": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 8192,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "intermediate_size": 512,
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
        "router_aux_loss_coef": 0.01,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
    }
    return Qwen3NextConfig(**(sizes | changes))


@torch.no_grad()
def new_model(config: Qwen3NextConfig, seed: int) -> Qwen3NextForCausalLM:
    """A fresh model in fp32.

    The DeltaNet decay starts as in Mamba-2 (arXiv 2405.21060): memory of one to a thousand tokens,
    spread over the heads. transformers' own initial values forget everything within a few tokens.
    """
    torch.manual_seed(seed)
    model = Qwen3NextForCausalLM(config).float()
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            mixer = layer.linear_attn
            step = torch.exp(torch.empty_like(mixer.dt_bias).uniform_(-6.9, -2.3))  # 0.001 to 0.1
            mixer.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
            mixer.A_log.copy_(torch.empty_like(mixer.A_log).uniform_(1.0, 16.0).log())
    return model
