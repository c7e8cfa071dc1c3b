"""Loading takes one pass over the files and, beside the model's own memory, a constant."""

import os
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from qcn_inference import loading
from qcn_inference.checkpoint import load_model
from qcn_inference.errors import CheckpointError
from random_checkpoints import Config, draw_config, draw_tensors, pack_experts, write_checkpoint
from torch import Tensor

# A few hundred MB: most of it experts, as in the models we serve, and matrices that are regrouped.
LARGE: Config = draw_config(1) | {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "mlp_only_layers": [],
    "vocab_size": 16_000,
    "hidden_size": 1024,
    "tie_word_embeddings": False,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 512,
}
BESIDE = 128 << 20  # bytes: pieces being converted, and what torch itself takes
LOAD_AND_MEASURE = """
import sys
from pathlib import Path
import torch
from qcn_inference.checkpoint import load_model

def memory(kind):
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(kind)]
    return int(line.split()[1]) << 10

torch.zeros(1000, 1000).bfloat16()
before = memory("VmRSS")
model = load_model(Path(sys.argv[1]), dtype=torch.bfloat16)
print(memory("VmHWM") - before)
"""


def as_fp8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store the matrices of `mlp` and the projections in FP8, one scale for 128 × 128 weights."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or ".layers." not in name or "gate.weight" in name:
            stored[name] = tensor
            continue
        stored[name] = tensor.to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = torch.ones([-(-size // 128) for size in tensor.shape])
    return stored


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("stored", ["bf16", "packed bf16", "fp32", "fp8"])
def test_a_model_of_hundreds_of_megabytes_takes_its_own_size(stored: str, tmp_path: Path) -> None:
    tensors = {
        name: tensor.bfloat16() for name, tensor in draw_tensors(LARGE, 1, deviation=0.05).items()
    }
    weights = sum(tensor.nbytes for tensor in tensors.values())
    assert weights > 2 * BESIDE
    config = LARGE
    if stored == "packed bf16":
        tensors = pack_experts(LARGE, tensors)
    elif stored == "fp32":
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    elif stored == "fp8":
        tensors = as_fp8(tensors)
        quantisation = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        config = LARGE | {"quantization_config": quantisation}
    folder = write_checkpoint(tmp_path, config, tensors, shards=3)
    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stdout)
    assert 0.9 * weights < peak <= weights + BESIDE


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is read, in order: file, place, bytes."""
    seen: list[tuple[str, int, int]] = []

    class Recorded(FileIO):
        def readinto(self, buffer: Any, /) -> int:
            at, count = self.tell(), super().readinto(buffer)
            seen.append((Path(str(self.name)).name, at, count or 0))
            return count or 0

    monkeypatch.setattr(loading, "FileIO", Recorded)
    return seen


def test_every_file_is_read_once_from_front_to_back(
    reads: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    """The shards hold every third tensor in the order of names: no order that a layer is built in.

    Vectors are read ahead of it, a few kB in all.
    """
    config = draw_config(11) | {"attention_bias": False, "num_hidden_layers": 3}
    config |= {"layer_types": ["linear_attention"] * 2 + ["full_attention"]}
    tensors = draw_tensors(config, 11, deviation=0.05)
    matrices = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2}
    folder = write_checkpoint(tmp_path, config, tensors, shards=3)
    load_model(folder)
    pass_ = reads[len(tensors) - len(matrices) :]
    assert pass_ == sorted(pass_)
    assert sum(count for _, _, count in pass_) == sum(x.nbytes for x in matrices.values())


def test_a_file_that_is_cut_short_while_it_is_read_is_named(tmp_path: Path) -> None:
    config = draw_config(11)
    folder = write_checkpoint(tmp_path, config, draw_tensors(config, 11, deviation=0.05), shards=2)
    last = folder / "model-00002-of-00002.safetensors"

    def cut(done: int, total: int) -> None:
        os.truncate(last, 1000)

    with pytest.raises(CheckpointError, match=r"cut short meanwhile\. Let the") as caught:
        load_model(folder, progress=cut)
    assert caught.value.path == last


def test_what_progress_raises_ends_the_loading(tmp_path: Path) -> None:
    """That is how an engine that is told to leave stops reading 80 GB."""
    config = draw_config(11)
    folder = write_checkpoint(tmp_path, config, draw_tensors(config, 11, deviation=0.05))
    told: list[int] = []

    class Leaving(BaseException):
        pass

    def leave(done: int, total: int) -> None:
        told.append(done)
        raise Leaving

    with pytest.raises(Leaving):
        load_model(folder, progress=leave)
    assert len(told) == 1
