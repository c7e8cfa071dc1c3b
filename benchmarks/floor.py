"""What the hardware allows at best: bytes over bandwidth, operations over the rate of products."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open


@dataclass(frozen=True)
class Cost:
    """Parameters of a checkpoint, and the least that prefill and decode must do."""

    parameters: int
    active_parameters: int  # that a decoded token reads: not idle experts, not the embedding table
    decode_bytes: int  # weights, recurrent state (read and written) and KV cache of one token
    prefill_operations: int  # of the whole prompt; the head for its last token alone


def cost(folder: Path, *, prompt_tokens: int, element_bytes: int) -> Cost:
    """The cost of a checkpoint's work with weights and KV of `element_bytes`, state in fp32."""
    config = json.loads((folder / "config.json").read_text())
    parameters = _count_parameters(folder)
    idle_experts = config["num_experts"] - config["num_experts_per_tok"]
    expert = 3 * config["hidden_size"] * config["moe_intermediate_size"]
    head = config["vocab_size"] * config["hidden_size"]
    table = 0 if config["tie_word_embeddings"] else head  # a tied table is read as the head
    active = parameters - config["num_hidden_layers"] * idle_experts * expert - table

    linear_layers = config["layer_types"].count("linear_attention")
    full_layers = config["layer_types"].count("full_attention")
    state = config["linear_num_value_heads"] * (
        config["linear_key_head_dim"] * config["linear_value_head_dim"]
    )
    kv = 2 * config["num_key_value_heads"] * config["head_dim"]
    attention = 2 * config["num_attention_heads"] * config["head_dim"]  # scores and values
    return Cost(
        parameters=parameters,
        active_parameters=active,
        decode_bytes=active * element_bytes
        + linear_layers * state * 2 * 4
        + full_layers * kv * prompt_tokens * element_bytes,
        prefill_operations=2 * (active - head) * prompt_tokens
        + 2 * head
        + full_layers * attention * prompt_tokens**2
        # Per token: state times key, outer product added, state times query.
        + linear_layers * 6 * state * prompt_tokens,
    )


def _count_parameters(folder: Path) -> int:
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        handle: Any = safe_open(path, "pt")  # it has no annotations
        with handle as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total
