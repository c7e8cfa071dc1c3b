"""An exported folder is an ordinary `qwen3_next` checkpoint with the model's own weights."""

import json
from pathlib import Path

import pytest
import torch
from nano_toy import toy_config, toy_tokenizer
from qcn_nano.export import export_model
from qcn_nano.model import new_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("toy")
    export_model(new_model(toy_config(), 3), toy_tokenizer(), place)
    return place


def test_transformers_computes_the_same_from_the_folder(folder: Path) -> None:
    ids = torch.arange(40).unsqueeze(0)
    original = new_model(toy_config(), 3)
    with torch.no_grad():
        for param in original.parameters():
            param.copy_(param.bfloat16())
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    assert torch.equal(loaded(ids).logits, original(ids).logits)


def test_experts_lie_one_by_one_as_in_the_published_checkpoints(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        one = weights.get_tensor("model.layers.0.mlp.experts.3.down_proj.weight")

    assert one.shape == (32, 16)
    assert one.dtype == torch.bfloat16
    assert "lm_head.weight" not in names
    assert not [name for name in names if "gate_up_proj" in name]


def test_the_config_has_the_published_keys(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    wanted = {"model_type": "qwen3_next", "rope_theta": 10_000.0, "full_attention_interval": 4}

    assert wanted.items() <= config.items()
    assert config["partial_rotary_factor"] == 0.25


def test_the_tokenizer_loads_and_promises_no_chat(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id]
    assert tokenizer.chat_template is None, "it has never seen one"
