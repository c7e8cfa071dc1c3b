"""How far each 4- and 8-bit format is from the unquantised model: measured on the embedded one.

Bounds are about twice what was measured (docs/quantisation.md). What 4 bits do to a model of 80
billion parameters was not measured.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import quantised_experts, write_gguf
from packed_checkpoints import packed, quantisation_config, rounded_layer
from qcn_inference.checkpoint import load_model
from qcn_inference.convert import BOUND, convert
from qcn_inference.divergence import Divergence, measure, sample_text
from qcn_inference.model import Model
from qcn_inference.tokenizer import Tokenizer
from random_checkpoints import Config, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.checkpoints import NANO


def gguf_file(folder: Path, kind: Kind) -> Path:
    config, tensors = nano()
    kinds = dict.fromkeys(("gate", "up", "down"), kind)
    raws, _ = quantised_experts(tensors, kinds)
    return write_gguf(folder / "model.gguf", config, tensors, experts=raws, kinds=kinds)


def gptq_folder(folder: Path) -> Path:
    config, tensors = nano()
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            parts = packed(rounded_layer(tensor, group=128), "gptq")
            base = name.removesuffix(".weight")
            stored |= {f"{base}.{kind}": part for kind, part in parts.items()}
        else:
            stored[name] = tensor
    quantisation = quantisation_config("gptq") | {"group_size": 128}
    return write_checkpoint(folder, config | {"quantization_config": quantisation}, stored)


def nano() -> tuple[Config, dict[str, Tensor]]:
    tensors = {name: t.float() for name, t in load_file(NANO / "model.safetensors").items()}
    return json.loads((NANO / "config.json").read_bytes()), tensors


@dataclass(frozen=True)
class Format:
    """How a copy in a format is made, and what it may cost."""

    origin: Callable[[Path], Path]  # what is converted, made in a folder
    bound: Divergence
    int4: bool = False


FORMATS = {
    "int4": Format(lambda _: NANO, Divergence(0.006, 0.03, 1024), int4=True),
    "Q8_0": Format(lambda at: gguf_file(at, Kind.Q8_0), Divergence(0.0004, 0.003, 1024)),
    "MXFP4": Format(lambda at: gguf_file(at, Kind.MXFP4), Divergence(0.018, 0.085, 1024)),
    "GPTQ, rounded": Format(lambda at: gptq_folder(at / "gptq"), Divergence(0.01, 0.05, 1024)),
}


@pytest.fixture(scope="module")
def original() -> Model:
    return load_model(NANO)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_stays_within_its_bound(name: str, original: Model, tmp_path: Path) -> None:
    chosen = FORMATS[name]
    copy = tmp_path / "copy"
    convert(chosen.origin(tmp_path), copy, lambda *_: None, int4=chosen.int4, threads=1)
    ids = sample_text(Tokenizer(NANO, original.config.vocab_size))
    measured = measure(original, load_model(copy, dtype=torch.bfloat16), ids)
    print(name, measured)
    assert not measured.exceeds(chosen.bound)
    assert chosen.bound.mean / 10 < measured.mean < measured.percentile_99
    assert not chosen.bound.exceeds(BOUND)
