"""GGUF files of random checkpoints, written with the `gguf` package.

Names and changes are those of llama.cpp's converter (`conversion/qwen.py`), which
`test_the_peers_converter_makes_the_same_model` holds against the real one where it is set up.
"""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from random_checkpoints import Config, layer_types
from torch import Tensor

Raw = np.ndarray  # [rows, bytes of a row] uint8
EXPERT_PARTS = ("gate", "up", "down")


def encode(tensor: Tensor, kind: Kind) -> tuple[Raw, Tensor]:
    """Return a matrix as `kind` stores it, and what that stands for.

    The package quantises to Q8_0 and MXFP4 alone. Of the others the blocks are drawn: any bytes
    are a block, and with small block scales the weights are as large as those they replace.
    """
    if kind in (Kind.Q8_0, Kind.MXFP4, Kind.BF16, Kind.F16):
        raw = gguf.quants.quantize(tensor.numpy(), kind).view(np.uint8)
    else:
        raw = random_blocks(tensor.shape, kind, deviation=float(tensor.std()))
    return raw, torch.from_numpy(gguf.quants.dequantize(raw, kind))


def random_blocks(shape: tuple[int, ...], kind: Kind, *, deviation: float) -> Raw:
    """Draw blocks of Q4_K, Q5_K or Q6_K whose weights have about this deviation."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] // elements, size), dtype=torch.uint8)
    # A weight is about scale · (code - middle): both uniform, over 6 and 4 bits or 8 and 6.
    spread = {Kind.Q4_K: 160, Kind.Q5_K: 320, Kind.Q6_K: 1400}[kind]
    unit = torch.full((*raw.shape[:-1], 1), deviation / spread, dtype=torch.float16)
    half = unit.view(torch.uint8)
    if kind == Kind.Q6_K:
        raw[..., -2:] = half
    else:
        raw[..., :2] = half
        raw[..., 2:4] = (unit * (8 if kind == Kind.Q4_K else 16)).view(torch.uint8)
    return raw.flatten(-2).numpy()


def quantised_experts(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind]
) -> tuple[dict[str, Raw], dict[str, Tensor]]:
    """Encode every expert's matrices; return the raw ones, and all tensors as they then are."""
    raws, after = {}, dict(tensors)
    for name, tensor in tensors.items():
        if ".experts." in name:
            part = name.split(".")[-2].removesuffix("_proj")
            raws[name], after[name] = encode(tensor, kinds[part])
    return raws, after


def write_gguf(
    path: Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    *,
    experts: Mapping[str, Raw] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    matrices: Kind | None = None,
    most_tensors: int = 0,
) -> Path:
    """Write a file, or several where it is to hold no more than `most_tensors`.

    Args:
        path: of the file.
        config: of the model.
        tensors: by transformers' names, fp32.
        experts: raw matrices of single experts in the place of those in `tensors`.
        kinds: of gate, up and down in `experts`.
        matrices: what other matrices are stored as, where it divides their rows; None is F32.
    """
    writer = gguf.GGUFWriter(path, "qwen3next", split_max_tensors=most_tensors)
    _add_metadata(writer, config)
    _add_tokens(writer, config["vocab_size"])

    def add(name: str, tensor: Tensor) -> None:
        floats = tensor.contiguous().numpy()
        if matrices is None or tensor.ndim < 2 or "conv1d" in name or "_inp" in name:
            writer.add_tensor(name, floats)
        else:
            writer.add_tensor(name, gguf.quants.quantize(floats, matrices), raw_dtype=matrices)

    for name, tensor in tensors.items():
        if ".experts." not in name:
            for theirs, changed in _theirs(config, name, tensor):
                add(theirs, changed)
    for layer in range(config["num_hidden_layers"]):
        for part in EXPERT_PARTS:
            numbers = range(config["num_experts"])
            names = [f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight" for e in numbers]
            if names[0] not in tensors:
                continue
            theirs = f"blk.{layer}.ffn_{part}_exps.weight"
            if experts is None or kinds is None:
                add(theirs, torch.stack([tensors[name] for name in names]))
            else:
                raw = np.stack([experts[name] for name in names])
                writer.add_tensor(theirs, raw, raw_dtype=kinds[part])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _theirs(config: Config, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return what the converter makes of a tensor that is no expert's."""
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    base, _, kind = name.rpartition(".")
    if base in outer:
        changed = tensor + 1 if base == "model.norm" else tensor
        return [(f"{outer[base]}.weight", changed)]
    _, _, layer, inner = name.split(".", 3)
    block = f"blk.{layer}"
    if inner == "linear_attn.in_proj_qkvz.weight":
        qkv, z = _ungrouped(config, tensor)
        return [(f"{block}.attn_qkv.weight", qkv), (f"{block}.attn_gate.weight", z)]
    if inner == "linear_attn.A_log":
        return [(f"{block}.ssm_a", -tensor.exp())]
    if inner == "linear_attn.dt_bias":
        return [(f"{block}.ssm_dt.bias", tensor)]
    renamed = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "linear_attn.in_proj_ba": "ssm_ba",
        "linear_attn.conv1d": "ssm_conv1d",
        "linear_attn.norm": "ssm_norm",
        "linear_attn.out_proj": "ssm_out",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        **{f"mlp.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in EXPERT_PARTS},
    }
    inner = inner.removesuffix(f".{kind}")
    if inner.endswith("norm") and inner != "linear_attn.norm":
        tensor = tensor + 1
    squeezed = inner in ("linear_attn.conv1d", "mlp.shared_expert_gate")
    return [(f"{block}.{renamed[inner]}.{kind}", tensor.squeeze() if squeezed else tensor)]


def _ungrouped(config: Config, qkvz: Tensor) -> tuple[Tensor, Tensor]:
    """Cut rows grouped by key head into all heads' q, k and v, and z."""
    heads = config["linear_num_key_heads"]
    key = config["linear_key_head_dim"]
    value = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
    parts = torch.split(qkvz.view(heads, -1, qkvz.shape[1]), [key, key, value, value], dim=1)
    q, k, v, z = (part.flatten(0, 1) for part in parts)
    return torch.cat((q, k, v)), z


def _add_metadata(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_chat_template("{{ messages[0].content }}")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(int(config["head_dim"] * config["partial_rotary_factor"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    assert "linear_attention" in layer_types(config)


def _add_tokens(writer: gguf.GGUFWriter, count: int) -> None:
    """A vocabulary of `count` tokens, one of them merged, the last a control token."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["t", "0", *(f"t{n}" for n in range(count - 3)), "<|endoftext|>"])
    writer.add_token_types([1] * (count - 1) + [3])
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(count - 1)
