"""From a checkpoint's tensors to the matrices the layers compute with.

What transformers stores for training is regrouped once, here: the rows of `in_proj_qkvz` and
`in_proj_ba`, interleaved by key head on disk, and those of `q_proj`, interleaved by head, are put
in the order q | k | v | …, so that one product serves all and no activation is ever shuffled.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from qcn_kernels.moe import Matrices
from torch import Tensor

from qcn_inference.config import ModelConfig
from qcn_inference.layers import DecoderLayer, DenseMlp, GatedAttention, GatedDeltaNet, SparseMoe
from qcn_inference.model import Model
from qcn_inference.tensors import TensorReader


def build_model(config: ModelConfig, tensors: TensorReader, fingerprint: str) -> Model:
    """Read every tensor of the model and put it together. Raises CheckpointError."""
    model = _around(config, tensors, fingerprint, tuple(Layers(config, tensors)))
    tensors.finish()
    return model


def streamed_model(config: ModelConfig, tensors: TensorReader) -> Model:
    """Return a model that reads its layers anew in every pass over them, and keeps none."""
    return _around(config, tensors, "", Layers(config, tensors))


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a checkpoint, each read when it is its turn."""

    config: ModelConfig
    tensors: TensorReader

    def __iter__(self) -> Iterator[DecoderLayer]:
        kinds = self.config.layer_types
        for i, kind in enumerate(kinds):
            yield _layer(self.config, self.tensors, i, kinds[:i].count(kind))


def _around(
    config: ModelConfig, tensors: TensorReader, fingerprint: str, layers: Iterable[DecoderLayer]
) -> Model:
    embedding = tensors.take("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    norm = _zero_centred(tensors, "model.norm.weight", config.hidden_size)
    if config.tie_word_embeddings:
        tensors.ignore("lm_head.weight")
        head = embedding
    else:
        head = tensors.take("lm_head.weight", config.vocab_size, config.hidden_size)
    return Model(config, fingerprint, embedding=embedding, layers=layers, norm=norm, head=head)


def _layer(config: ModelConfig, tensors: TensorReader, number: int, slot: int) -> DecoderLayer:
    prefix = f"model.layers.{number}"
    linear = config.layer_types[number] == "linear_attention"
    hidden = config.hidden_size
    return DecoderLayer(
        eps=config.rms_norm_eps,
        mixer_norm=_zero_centred(tensors, f"{prefix}.input_layernorm.weight", hidden),
        mixer=(
            _deltanet(config, tensors, f"{prefix}.linear_attn", slot)
            if linear
            else _attention(config, tensors, f"{prefix}.self_attn", slot)
        ),
        mlp_norm=_zero_centred(tensors, f"{prefix}.post_attention_layernorm.weight", hidden),
        mlp=(
            _mlp(tensors, f"{prefix}.mlp", config.intermediate_size, hidden)
            if number in config.dense_layers
            else _moe(config, tensors, f"{prefix}.mlp")
        ),
    )


def _deltanet(config: ModelConfig, tensors: TensorReader, prefix: str, slot: int) -> GatedDeltaNet:
    hidden = config.hidden_size
    key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    shared = value_heads // key_heads
    key_dim, value_dim = config.linear_key_head_dim, config.linear_value_head_dim
    # On disk, per key head: q | k | its value heads' v | their z, and b | a.
    qkvz = tensors.take(
        f"{prefix}.in_proj_qkvz.weight",
        2 * config.linear_key_dim + 2 * config.linear_value_dim,
        hidden,
    )
    parts = qkvz.view(key_heads, -1, hidden).split_with_sizes(
        (key_dim, key_dim, shared * value_dim, shared * value_dim), dim=1
    )
    ba = tensors.take(f"{prefix}.in_proj_ba.weight", 2 * value_heads, hidden)
    parts += ba.view(key_heads, -1, hidden).split_with_sizes((shared, shared), dim=1)
    kernel = config.linear_conv_kernel_dim
    conv = tensors.take(
        f"{prefix}.conv1d.weight", config.linear_conv_dim, 1, kernel, dtype=torch.float32
    )
    a_log = tensors.take(f"{prefix}.A_log", value_heads, dtype=torch.float32)
    return GatedDeltaNet(
        config=config,
        slot=slot,
        in_proj=torch.cat([part.reshape(-1, hidden) for part in parts]),
        conv=conv.squeeze(1).T.contiguous(),
        neg_a=-a_log.exp(),
        dt_bias=tensors.take(f"{prefix}.dt_bias", value_heads, dtype=torch.float32),
        norm=tensors.take(f"{prefix}.norm.weight", value_dim, dtype=torch.float32),
        out_proj=tensors.take(f"{prefix}.out_proj.weight", hidden, config.linear_value_dim),
    )


def _attention(
    config: ModelConfig, tensors: TensorReader, prefix: str, slot: int
) -> GatedAttention:
    hidden, head_dim = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    def fused(kind: str, *shape: int) -> Tensor:
        """Stack the rows of q, k, v and gate; `q_proj` holds, per head, q | gate."""
        q = tensors.take(f"{prefix}.q_proj.{kind}", 2 * heads * head_dim, *shape)
        q, gate = q.view(heads, 2, head_dim, *shape).unbind(1)
        k = tensors.take(f"{prefix}.k_proj.{kind}", kv_heads * head_dim, *shape)
        v = tensors.take(f"{prefix}.v_proj.{kind}", kv_heads * head_dim, *shape)
        return torch.cat((q.reshape(-1, *shape), k, v, gate.reshape(-1, *shape)))

    q_norm = _zero_centred(tensors, f"{prefix}.q_norm.weight", head_dim)
    k_norm = _zero_centred(tensors, f"{prefix}.k_norm.weight", head_dim)
    biased = config.attention_bias
    return GatedAttention(
        config=config,
        slot=slot,
        in_proj=fused("weight", hidden),
        in_bias=fused("bias") if biased else None,
        qk_norm=torch.cat((q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1))),
        out_proj=tensors.take(f"{prefix}.o_proj.weight", hidden, heads * head_dim),
        out_bias=tensors.take(f"{prefix}.o_proj.bias", hidden) if biased else None,
    )


def _moe(config: ModelConfig, tensors: TensorReader, prefix: str) -> SparseMoe:
    hidden, count = config.hidden_size, config.num_experts
    size = config.moe_intermediate_size
    packed = f"{prefix}.experts.gate_up_proj"
    gate_up: Matrices
    down: Matrices
    if packed in tensors or f"{packed}.codes" in tensors:
        gate_up = tensors.take_matrices(packed, count, 2 * size, hidden)
        down = tensors.take_matrices(f"{prefix}.experts.down_proj", count, hidden, size)
    else:
        gate_up, down = _gather_experts(config, tensors, f"{prefix}.experts")
    router = tensors.take(f"{prefix}.gate.weight", count, hidden)
    shared_gate = tensors.take(f"{prefix}.shared_expert_gate.weight", 1, hidden)
    shared = _mlp(
        tensors, f"{prefix}.shared_expert", config.shared_expert_intermediate_size, hidden
    )
    return SparseMoe(
        config=config,
        in_proj=torch.cat((router, shared_gate, shared.gate_up)),
        gate_up=gate_up,
        down=down,
        shared_down=shared.down,
    )


def _gather_experts(
    config: ModelConfig, tensors: TensorReader, prefix: str
) -> tuple[Tensor, Tensor]:
    """Pack experts that are stored one by one, each as it is read: no second copy of them all."""
    hidden, size = config.hidden_size, config.moe_intermediate_size
    # Before memory is taken for as many experts as config.json says, see that they are there.
    tensors.check(f"{prefix}.{config.num_experts - 1}.down_proj.weight", hidden, size)
    gate_up = torch.empty(config.num_experts, 2 * size, hidden, dtype=tensors.dtype)
    down = torch.empty(config.num_experts, hidden, size, dtype=tensors.dtype)
    for i in range(config.num_experts):
        gate_up[i, :size] = tensors.take(f"{prefix}.{i}.gate_proj.weight", size, hidden)
        gate_up[i, size:] = tensors.take(f"{prefix}.{i}.up_proj.weight", size, hidden)
        down[i] = tensors.take(f"{prefix}.{i}.down_proj.weight", hidden, size)
    return gate_up, down


def _mlp(tensors: TensorReader, prefix: str, size: int, hidden: int) -> DenseMlp:
    gate = tensors.take(f"{prefix}.gate_proj.weight", size, hidden)
    up = tensors.take(f"{prefix}.up_proj.weight", size, hidden)
    return DenseMlp(
        gate_up=torch.cat((gate, up)),
        down=tensors.take(f"{prefix}.down_proj.weight", hidden, size),
    )


def _zero_centred(tensors: TensorReader, name: str, size: int) -> Tensor:
    """Read the weight of a zero-centred norm as the scale it stands for, fp32."""
    return 1.0 + tensors.take(name, size, dtype=torch.float32)
