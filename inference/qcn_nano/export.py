"""Writes a model as an ordinary `qwen3_next` checkpoint folder: bf16, one tensor per expert."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3NextForCausalLM

from qcn_nano.tokenizer import save_tokenizer

STOPS = ("<|im_end|>", "<|endoftext|>")


def published_tensors(model: Qwen3NextForCausalLM) -> dict[str, Tensor]:
    """The parameters as published checkpoints name them, bf16; tied embeddings stand once."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().to("cpu", torch.bfloat16)
        prefix, packed, kind = name.partition(".experts.")
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if not packed:
            tensors[name] = tensor.contiguous()
            continue
        for expert, weight in enumerate(tensor):
            at = f"{prefix}.experts.{expert}"
            if kind == "gate_up_proj":
                gate, up = weight.chunk(2)
                tensors[f"{at}.gate_proj.weight"] = gate.clone()
                tensors[f"{at}.up_proj.weight"] = up.clone()
            else:
                tensors[f"{at}.{kind}.weight"] = weight.clone()
    return tensors


def export_model(model: Qwen3NextForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, weights, tokenizer and generation settings; each file appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(folder.name + ".new")
    beside.mkdir(exist_ok=True)
    config = model.config.to_diff_dict() | {
        "architectures": ["Qwen3NextForCausalLM"],
        "dtype": "bfloat16",
    }
    config["eos_token_id"] = tokenizer.token_to_id("<|im_end|>")
    config["pad_token_id"] = config["bos_token_id"] = tokenizer.token_to_id("<|endoftext|>")
    # transformers keeps these in `rope_parameters` and `layer_types`, published files here.
    config["rope_theta"] = model.config.rope_parameters["rope_theta"]
    config["partial_rotary_factor"] = model.config.rope_parameters["partial_rotary_factor"]
    config["full_attention_interval"] = model.config.layer_types.index("full_attention") + 1
    generation = {
        "do_sample": False,
        "eos_token_id": [tokenizer.token_to_id(token) for token in STOPS],
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "fim_order": "suffix_first",
    }
    (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (beside / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, beside, model.config.max_position_embeddings)
    save_file(published_tensors(model), beside / "model.safetensors", metadata={"format": "pt"})
    for path in sorted(beside.iterdir()):
        path.chmod(0o644)
        path.replace(folder / path.name)
    beside.rmdir()
