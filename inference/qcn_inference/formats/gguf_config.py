"""What a GGUF file's metadata says of the model, as `config.json` would say it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcn_inference.errors import CheckpointError
from qcn_inference.formats.gguf import Gguf

ARCHITECTURE = "qwen3next"
REMEDY = "Use a GGUF file of Qwen3-Coder-Next or another qwen3next model, converted anew"


def config_values(gguf: Gguf) -> dict[str, Any]:
    """Return the keys of `config.json`.

    What the metadata leaves open is seen from the tensors: which layers are which, whether the
    head is the embedding, and how many tokens there are.

    Raises:
        CheckpointError: another architecture, or a key that is missing or of another type.
    """
    found = _Metadata(gguf.paths[0], gguf.metadata)
    if found.get("general.architecture", str) != ARCHITECTURE:
        name = gguf.metadata.get("general.architecture")
        raise CheckpointError(found.path, f"is of the architecture {name!r}", REMEDY)
    heads, head_dim = found.integer("attention.head_count"), found.integer("attention.key_length")
    value_heads = found.integer("ssm.time_step_rank")
    layers = found.integer("block_count") - found.optional_integer("nextn_predict_layers")
    linear = [f"blk.{i}.ssm_a" in gguf.tensors for i in range(layers)]
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(found.path, "lacks the tensor token_embd.weight", REMEDY)
    if gguf.metadata.get(f"{ARCHITECTURE}.rope.scaling.type", "none") != "none":
        raise CheckpointError(found.path, "asks for scaled rotary embedding", REMEDY)
    theta = found.number("rope.freq_base")
    rotary = found.integer("rope.dimension_count") / head_dim
    eos = [gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "vocab_size": embedding.shape[0],
        "hidden_size": found.integer("embedding_length"),
        "num_hidden_layers": layers,
        "layer_types": ["linear_attention" if each else "full_attention" for each in linear],
        "max_position_embeddings": found.integer("context_length"),
        # fp32 in the file: as short as tells it from its neighbours, 1e-06
        "rms_norm_eps": float(f"{found.number('attention.layer_norm_rms_epsilon'):.7g}"),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "hidden_act": "silu",
        "num_attention_heads": heads,
        "num_key_value_heads": found.integer("attention.head_count_kv"),
        "head_dim": head_dim,
        "attention_bias": any(name.endswith("attn_q.bias") for name in gguf.tensors),
        "partial_rotary_factor": rotary,
        "rope_theta": theta,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": theta,
            "partial_rotary_factor": rotary,
        },
        "linear_num_key_heads": found.integer("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": found.integer("ssm.state_size"),
        "linear_value_head_dim": found.integer("ssm.inner_size") // value_heads,
        "linear_conv_kernel_dim": found.integer("ssm.conv_kernel"),
        "num_experts": found.integer("expert_count"),
        "num_experts_per_tok": found.integer("expert_used_count"),
        "norm_topk_prob": gguf.metadata.get(f"{ARCHITECTURE}.expert_weights_norm", True),
        "moe_intermediate_size": found.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": found.integer("expert_shared_feed_forward_length"),
        "intermediate_size": found.optional_integer("feed_forward_length") or 1,
        "mlp_only_layers": [
            i for i in range(layers) if f"blk.{i}.ffn_gate_inp.weight" not in gguf.tensors
        ],
        "eos_token_id": list(dict.fromkeys(each for each in eos if each is not None)),
    }


class _Metadata:
    """Values of the expected type."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self._values = values

    def integer(self, key: str) -> int:
        value: int = self.get(f"{ARCHITECTURE}.{key}", int)
        if not 0 < value < 2**31:
            raise CheckpointError(self.path, f"has {key} = {value}", REMEDY)
        return value

    def optional_integer(self, key: str) -> int:
        return self.integer(key) if self._values.get(f"{ARCHITECTURE}.{key}") else 0

    def number(self, key: str) -> float:
        value: float = self.get(f"{ARCHITECTURE}.{key}", float)
        return value

    def get(self, key: str, kind: type) -> Any:
        value = self._values.get(key)
        if type(value) is not kind:
            raise CheckpointError(
                self.path, f"has {key} = {str(value)[:40]}; expected {kind.__name__}", REMEDY
            )
        return value
