"""A GGUF file of the architecture `qwen3next`, as a checkpoint with transformers' names.

The converter that makes such files changes tensors, which is undone here: weights of norms are
stored plus one (but for the gated norm of DeltaNet), `ssm_a` is -exp(A_log), the convolution lost
its middle dimension, and the rows of `in_proj_qkvz` are no longer grouped by key head. Experts that
are quantised keep their codes; of all else, what is quantised becomes bf16, and floats stay.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from qcn_kernels.groupwise import concatenate
from qcn_kernels.moe.cpu import Matrices
from torch import Tensor

from qcn_inference.config import ModelConfig, parse_config
from qcn_inference.errors import CheckpointError
from qcn_inference.formats.gguf import Place, read_gguf
from qcn_inference.formats.gguf_blocks import to_floats, to_matrices
from qcn_inference.formats.gguf_config import config_values
from qcn_inference.formats.gguf_tokenizer import tokenizer_json

OTHER = "Use the safetensors checkpoint, or another GGUF file of the model"
EXPERTS_AT_ONCE = 16  # repacked at a time: what lies between the two layouts stays small

IN_BLOCK = re.compile(r"blk\.([0-9]{1,9})\.(.+)")

Undo = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def _less_one(x: Tensor) -> Tensor:
    return x - 1


OUTER: dict[str, tuple[str, Undo]] = {
    "token_embd.weight": ("model.embed_tokens.weight", _same),
    "output_norm.weight": ("model.norm.weight", _less_one),
    "output.weight": ("lm_head.weight", _same),
}
LAYER: dict[str, tuple[str, Undo]] = {
    "attn_norm.weight": ("input_layernorm.weight", _less_one),
    "post_attention_norm.weight": ("post_attention_layernorm.weight", _less_one),
    "attn_q_norm.weight": ("self_attn.q_norm.weight", _less_one),
    "attn_k_norm.weight": ("self_attn.k_norm.weight", _less_one),
    "ssm_in.weight": ("linear_attn.in_proj_qkvz.weight", _same),  # of older converters
    "ssm_ba.weight": ("linear_attn.in_proj_ba.weight", _same),
    "ssm_conv1d.weight": ("linear_attn.conv1d.weight", lambda x: x.unsqueeze(1)),
    "ssm_a": ("linear_attn.A_log", lambda x: (-x).log()),
    "ssm_dt.bias": ("linear_attn.dt_bias", _same),
    "ssm_norm.weight": ("linear_attn.norm.weight", _same),
    "ssm_out.weight": ("linear_attn.out_proj.weight", _same),
    "ffn_gate_inp.weight": ("mlp.gate.weight", _same),
    "ffn_gate_inp_shexp.weight": ("mlp.shared_expert_gate.weight", lambda x: x.view(1, -1)),
}
for _theirs, _ours in {"q": "q", "k": "k", "v": "v", "output": "o"}.items():
    for _kind in ("weight", "bias"):
        LAYER[f"attn_{_theirs}.{_kind}"] = (f"self_attn.{_ours}_proj.{_kind}", _same)
for _part in ("gate", "up", "down"):
    LAYER[f"ffn_{_part}.weight"] = (f"mlp.{_part}_proj.weight", _same)
    LAYER[f"ffn_{_part}_shexp.weight"] = (f"mlp.shared_expert.{_part}_proj.weight", _same)

QKV, Z = "attn_qkv.weight", "attn_gate.weight"
GATE, UP, GATE_UP, DOWN = (f"ffn_{part}_exps.weight" for part in ("gate", "up", "gate_up", "down"))


class GgufSource:
    """See `Source`."""

    weight_block_size: list[int] | None = None
    lossless = True

    def __init__(self, path: Path, read: Callable[[int], None]) -> None:
        """Open a file, or the set of files it is a part of; `read` is told the bytes taken."""
        self._gguf = read_gguf(path)
        self._path = path
        self._read = read
        self.files = list(self._gguf.paths)
        self.values: dict[str, Any] = config_values(self._gguf)
        self._config: ModelConfig = parse_config(path, self.values)
        self.texts = {"tokenizer.json": tokenizer_json(self._gguf)}
        if isinstance(template := self._gguf.metadata.get("tokenizer.chat_template"), str):
            self.texts["chat_template.jinja"] = template.encode()
        layers = len(self._config.layer_types)
        # Blocks behind the last layer hold a multi-token-prediction head, which is left out.
        self._parts: list[dict[str, Place]] = [{} for _ in range(layers + 1)]
        for name, place in self._gguf.tensors.items():
            match = IN_BLOCK.fullmatch(name)
            if match is None:
                self._parts[0][name] = place
            elif (number := int(match[1])) < layers:
                self._parts[1 + number][match[2]] = place
        places = [place for part in self._parts[1:] for place in _of_experts(part)]
        self.quantised = all(place.kind.dtype is None for place in places)

    def part_bytes(self) -> list[int]:
        """The bytes of each part."""
        return [sum(place.data.nbytes for place in part.values()) for part in self._parts]

    def tensors(self, part: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a part but for the experts."""
        prefix = f"model.layers.{part - 1}." if part else ""
        known = LAYER if part else OUTER
        places = self._parts[part]
        for name, place in places.items():
            if name in known:
                ours, undo = known[name]
                yield f"{prefix}{ours}", undo(self._floats(place)).contiguous()
            elif name == QKV and Z in places:
                qkvz = self._grouped(self._floats(place), self._floats(places[Z]))
                yield f"{prefix}linear_attn.in_proj_qkvz.weight", qkvz
            elif name not in (Z, GATE, UP, GATE_UP, DOWN):
                raise CheckpointError(place.path, f"holds the unknown tensor {name}", OTHER)

    def experts(self, part: int) -> Iterator[tuple[str, Matrices]]:
        """A layer's experts."""
        places = self._parts[part]
        if not _of_experts(places):
            return
        prefix = f"model.layers.{part - 1}.mlp.experts"
        try:
            up = [places[GATE_UP]] if GATE_UP in places else [places[GATE], places[UP]]
            yield f"{prefix}.gate_up_proj", self._stack(up)
            yield f"{prefix}.down_proj", self._stack([places[DOWN]])
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                self._path,
                f"the experts of block {part - 1} cannot be put together ({error})",
                OTHER,
            ) from error

    def _stack(self, places: list[Place]) -> Matrices:
        """Put the rows of several stacks [experts, rows, columns] below each other."""
        count = places[0].shape[0]
        if any(place.kind.dtype is not None for place in places):
            return torch.cat([self._floats(place) for place in places], dim=1)
        chunks = []
        for first in range(0, count, EXPERTS_AT_ONCE):
            joined = []
            for place in places:
                data = place.data.view(count, -1, place.data.shape[1])
                data = data[first : first + EXPERTS_AT_ONCE]
                self._read(data.nbytes)
                joined.append(to_matrices(data, place.kind, torch.bfloat16))
            chunks.append(concatenate(joined, dim=1))
        return concatenate(chunks, dim=0)

    def _floats(self, place: Place) -> Tensor:
        self._read(place.data.nbytes)
        floats = to_floats(place.data, place.kind)
        if place.kind.dtype is None:
            floats = floats.to(torch.bfloat16)
        return floats.view(place.shape)

    def _grouped(self, qkv: Tensor, z: Tensor) -> Tensor:
        """Put the rows of q, k, v and z, all heads of each together, in groups of a key head."""
        config = self._config
        key, value = config.linear_key_dim, config.linear_value_dim
        parts = (*qkv.split_with_sizes((key, key, value), dim=0), z)
        heads = config.linear_num_key_heads
        grouped = [part.reshape(heads, -1, config.hidden_size) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)


def _of_experts(places: Mapping[str, Place]) -> list[Place]:
    return [places[name] for name in (GATE, UP, GATE_UP, DOWN) if name in places]
