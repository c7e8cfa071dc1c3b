"""Random small checkpoints of each family, written as publishers write them, without transformers.

Shapes are drawn over everything the architecture leaves open. Every parameter is random, also those
whose initial values hide mistakes: a zero-centred norm at 0, a decay bias that is the same in all
heads, a convolution near 0. The oracle (`oracle.py`) reads the very files that we read.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Config = dict[str, Any]
Normal = Callable[..., Tensor]  # shape, and as keywords mean and deviation → a tensor drawn so


def draw_config(seed: int) -> Config:
    """Draw the `config.json` of a model of a few hundred thousand parameters."""
    draw = random.Random(seed)
    layers = draw.randint(2, 5)
    kv_heads = draw.choice([1, 2, 3])
    key_heads = draw.choice([1, 2, 3])
    experts = draw.choice([2, 3, 5, 8, 17, 32])
    head_dim = draw.choice([16, 24, 32, 64])
    rotary_dim = draw.choice([d for d in range(2, head_dim + 1, 2) if d % 8 == 0 or d == 2])
    config: Config = {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "vocab_size": draw.choice([97, 256, 1000, 2053]),
        "hidden_size": draw.choice([32, 48, 64, 100]),
        "num_hidden_layers": layers,
        "max_position_embeddings": 4096,
        "rms_norm_eps": draw.choice([1e-6, 1e-5]),
        "tie_word_embeddings": draw.random() < 0.5,
        "hidden_act": "silu",
        "num_attention_heads": kv_heads * draw.choice([1, 2, 4]),
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "attention_bias": draw.random() < 0.2,
        "partial_rotary_factor": rotary_dim / head_dim,
        "rope_theta": draw.choice([10_000.0, 5_000_000.0]),
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * draw.choice([1, 2, 3]),
        "linear_key_head_dim": draw.choice([8, 16, 20, 32]),
        "linear_value_head_dim": draw.choice([8, 16, 24, 32]),
        "linear_conv_kernel_dim": draw.choice([2, 3, 4, 5]),
        "num_experts": experts,
        "num_experts_per_tok": draw.randint(1, min(experts, 6)),
        "norm_topk_prob": draw.random() < 0.7,
        "moe_intermediate_size": draw.choice([16, 24, 40]),
        "shared_expert_intermediate_size": draw.choice([16, 32, 56]),
        "intermediate_size": 48,
        "mlp_only_layers": [draw.randrange(layers)] if draw.random() < 0.2 else [],
        "eos_token_id": 3,
    }
    # At least one layer is full attention: without any, transformers cannot step (its cache takes
    # the position from such a layer).
    if draw.random() < 0.5:
        config["full_attention_interval"] = draw.randint(1, layers)
    else:
        kinds = ["linear_attention", "full_attention"]
        config["layer_types"] = draw.choices(kinds, weights=[3, 1], k=layers)
        config["layer_types"][draw.randrange(layers)] = "full_attention"
    return config


def draw_qwen3_5(seed: int, *, dense: bool) -> Config:
    """Draw the `config.json` of a Qwen3.5 text model, spelt as its publisher spells it."""
    config = draw_config(seed)
    draw = random.Random(-seed - 1)
    for key in ("architectures", "norm_topk_prob", "mlp_only_layers"):
        del config[key]
    config["model_type"] = "qwen3_5_text" if dense else "qwen3_5_moe_text"
    if dense:
        for key in [key for key in config if "expert" in key or key == "moe_intermediate_size"]:
            del config[key]
    else:
        del config["intermediate_size"]
    factor = config.pop("partial_rotary_factor")
    pairs = round(config["head_dim"] * factor) // 2
    height, width = draw.randint(0, pairs // 3), draw.randint(0, pairs // 3)
    config["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": config.pop("rope_theta"),
        "partial_rotary_factor": factor,
        "mrope_interleaved": True,
        "mrope_section": [pairs - height - width, height, width],
    }
    return config | {
        "attn_output_gate": True,
        "output_gate_type": "swish",
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
    }


def draw_mtp_head(config: Config, seed: int, *, deviation: float) -> dict[str, Tensor]:
    """Draw the tensors of a multi-token-prediction head, `mtp.*`: its layer is full attention."""
    alone = config | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    if "mlp_only_layers" in config:
        alone["mlp_only_layers"] = []
    drawn = draw_tensors(alone, seed, deviation=deviation)
    tensors = {
        name.replace("model.", "mtp.", 1): tensor
        for name, tensor in drawn.items()
        if "embed_tokens" not in name and name != "lm_head.weight"
    }
    hidden = config["hidden_size"]
    random_numbers = torch.Generator().manual_seed(seed)
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        tensors[f"mtp.{name}.weight"] = 0.2 * torch.randn(hidden, generator=random_numbers)
    matrix = torch.randn(hidden, 2 * hidden, generator=random_numbers)
    return tensors | {"mtp.fc.weight": 2 * deviation * matrix}


def wrap(config: Config, tensors: Mapping[str, Tensor]) -> tuple[Config, dict[str, Tensor]]:
    """Put a Qwen3.5 text model beside a vision tower, as it is published."""
    wrapped = {
        re.sub(r"^model\.", "model.language_model.", name): tensor
        for name, tensor in tensors.items()
    }
    wrapped["model.visual.patch_embed.proj.weight"] = torch.full((4, 3, 2, 2, 2), torch.nan)
    outer = {
        "model_type": config["model_type"].removesuffix("_text"),
        "text_config": config,
        "vision_config": {"model_type": "qwen3_5_vision", "depth": 1},
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    return outer, wrapped


def draw_tensors(config: Config, seed: int, *, deviation: float) -> dict[str, Tensor]:
    """Draw every tensor of the model, fp32, experts one by one.

    Args:
        config: what `draw_config` returned.
        seed: of the values.
        deviation: standard deviation of the weight matrices.
    """
    random_numbers = torch.Generator().manual_seed(seed)

    def normal(*shape: int, around: float = 0.0, spread: float = deviation) -> Tensor:
        return around + spread * torch.randn(shape, generator=random_numbers)

    hidden, vocab = config["hidden_size"], config["vocab_size"]
    tensors = {
        "model.embed_tokens.weight": normal(vocab, hidden),
        "model.norm.weight": normal(hidden, spread=0.2),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(vocab, hidden)
    for i, kind in enumerate(layer_types(config)):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.input_layernorm.weight"] = normal(hidden, spread=0.2)
        tensors[f"{layer}.post_attention_layernorm.weight"] = normal(hidden, spread=0.2)
        if kind == "linear_attention":
            tensors |= _draw_delta_net(config, f"{layer}.linear_attn", normal)
        else:
            tensors |= _draw_attention(config, f"{layer}.self_attn", normal)
        if "num_experts" not in config or i in config.get("mlp_only_layers", []):
            tensors |= _draw_mlp(config, f"{layer}.mlp", config["intermediate_size"], normal)
        else:
            tensors |= _draw_experts(config, f"{layer}.mlp", normal)
    return tensors


def _draw_delta_net(config: Config, mixer: str, normal: Normal) -> dict[str, Tensor]:
    hidden, value_heads = config["hidden_size"], config["linear_num_value_heads"]
    value_head_dim = config["linear_value_head_dim"]
    key_dim = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    value_dim = value_heads * value_head_dim
    channels, kernel = 2 * key_dim + value_dim, config["linear_conv_kernel_dim"]
    if config["model_type"] == "qwen3_next":
        projections = {
            f"{mixer}.in_proj_qkvz.weight": normal(channels + value_dim, hidden),
            f"{mixer}.in_proj_ba.weight": normal(2 * value_heads, hidden, spread=0.2),
        }
    else:
        projections = {
            f"{mixer}.in_proj_qkv.weight": normal(channels, hidden),
            f"{mixer}.in_proj_z.weight": normal(value_dim, hidden),
            f"{mixer}.in_proj_b.weight": normal(value_heads, hidden, spread=0.2),
            f"{mixer}.in_proj_a.weight": normal(value_heads, hidden, spread=0.2),
        }
    return projections | {
        f"{mixer}.conv1d.weight": normal(channels, 1, kernel, spread=0.4),
        f"{mixer}.A_log": normal(value_heads, spread=1.5),
        f"{mixer}.dt_bias": normal(value_heads, around=-2.0, spread=2.0),
        f"{mixer}.norm.weight": normal(value_head_dim, around=1.0, spread=0.3),
        f"{mixer}.out_proj.weight": normal(hidden, value_dim),
    }


def _draw_attention(config: Config, mixer: str, normal: Normal) -> dict[str, Tensor]:
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    rows = {
        "q_proj": (2 * heads * head_dim, hidden),
        "k_proj": (kv_heads * head_dim, hidden),
        "v_proj": (kv_heads * head_dim, hidden),
        "o_proj": (hidden, heads * head_dim),
    }
    tensors = {}
    for name, shape in rows.items():
        tensors[f"{mixer}.{name}.weight"] = normal(*shape)
        if config["attention_bias"]:
            tensors[f"{mixer}.{name}.bias"] = normal(shape[0], spread=0.2)
    tensors[f"{mixer}.q_norm.weight"] = normal(head_dim, spread=0.5)
    tensors[f"{mixer}.k_norm.weight"] = normal(head_dim, spread=0.5)
    return tensors


def _draw_experts(config: Config, mlp: str, normal: Normal) -> dict[str, Tensor]:
    hidden, experts = config["hidden_size"], config["num_experts"]
    shared, size = config["shared_expert_intermediate_size"], config["moe_intermediate_size"]
    # The router is wider than the rest, or every token would be a near-tie.
    tensors = {
        f"{mlp}.gate.weight": normal(experts, hidden, spread=0.3),
        f"{mlp}.shared_expert_gate.weight": normal(1, hidden, spread=0.2),
    }
    tensors |= _draw_mlp(config, f"{mlp}.shared_expert", shared, normal)
    for expert in range(experts):
        tensors |= _draw_mlp(config, f"{mlp}.experts.{expert}", size, normal)
    return tensors


def _draw_mlp(config: Config, mlp: str, size: int, normal: Normal) -> dict[str, Tensor]:
    hidden = config["hidden_size"]
    return {
        f"{mlp}.gate_proj.weight": normal(size, hidden),
        f"{mlp}.up_proj.weight": normal(size, hidden),
        f"{mlp}.down_proj.weight": normal(hidden, size),
    }


def layer_types(config: Config) -> list[str]:
    """Return the kind of each layer, from either spelling."""
    if "layer_types" in config:
        return list(config["layer_types"])
    interval = config["full_attention_interval"]
    return [
        "linear_attention" if (i + 1) % interval else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]


def pack_experts(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace experts stored one by one by `experts.gate_up_proj` and `experts.down_proj`."""
    packed = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for i in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{i}.mlp.experts"
        if f"{prefix}.0.up_proj.weight" not in tensors:
            continue
        gate, up, down = (
            torch.stack(
                [tensors[f"{prefix}.{e}.{part}.weight"] for e in range(config["num_experts"])]
            )
            for part in ("gate_proj", "up_proj", "down_proj")
        )
        packed[f"{prefix}.gate_up_proj"] = torch.cat((gate, up), dim=1)
        packed[f"{prefix}.down_proj"] = down
    return packed


def write_checkpoint(
    folder: Path, config: Config, tensors: Mapping[str, Tensor], *, shards: int = 1
) -> Path:
    """Write a checkpoint folder: one file, or `shards` files with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_checkpoint(
    folder: Path, seed: int, *, deviation: float = 0.05, **changes: object
) -> Path:
    """Write the checkpoint drawn from `seed`, with some keys of its config changed."""
    config = draw_config(seed) | changes
    return write_checkpoint(folder, config, draw_tensors(config, seed, deviation=deviation))
