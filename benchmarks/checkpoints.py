"""Checkpoint folders to measure on: the embedded model, and random weights of a given shape."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import qcn_inference

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
NANO = Path(qcn_inference.__file__).parent / "data" / "qcn-nano"


def longer_nano(length: int) -> Path:
    """qcn-nano, for texts of up to `length` tokens."""
    folder = CACHE / f"nano-{length}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(NANO, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = length
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_checkpoint(shape: dict[str, Any], *, seed: int = 0, std: float = 0.04) -> Path:
    """A folder with random bf16 weights of `shape`, made once and then found again.

    Every parameter is drawn: norms, decay and step too, because their usual initial values would
    let an implementation that ignores them look right when greedy tokens are compared. bf16 on
    disk, so that runtimes that compute in fp32 and in bf16 hold exactly the same numbers.
    """
    key = json.dumps([shape, seed, std, "1"], sort_keys=True)
    folder = CACHE / f"random-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    import torch
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    nano = json.loads((NANO / "config.json").read_text())
    tokens = {name: nano[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**(shape | tokens)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("linear_attn.norm.weight"):
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("A_log"):
                parameter.copy_(0.5 + 0.5 * noise)
            elif name.endswith("dt_bias"):
                parameter.copy_(-3.0 + noise)  # memory of tens of tokens: long enough to be seen
            else:
                parameter.copy_(std * noise)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside, in a folder of this process's own: another may be making the same checkpoint.
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        part = Path(beside) / folder.name
        model.to(torch.bfloat16).save_pretrained(part)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(NANO / name, part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.exists():  # else the other was quicker, and its bytes are the same
                raise
    return folder
