"""From a checkpoint's tensors to the matrices the layers compute with.

What transformers stores for training is regrouped once, here: the rows of `in_proj_qkvz` and
`in_proj_ba`, interleaved by key head on disk, and those of `q_proj`, interleaved by head, are put
in the order q | k | v | …, so that one product serves all and no activation is ever shuffled.
Qwen3.5 stores the same rows in that order, in four matrices. Which way a layer is stored is seen
from the names that are there, not from the family.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from qcn_kernels.fp8 import BLOCK, Fp8Matrices
from qcn_kernels.linear import Stacked, Weight
from qcn_kernels.moe import Matrices
from torch import Tensor

from qcn_inference.config import LayerType, ModelConfig
from qcn_inference.layers import DecoderLayer, DenseMlp, GatedAttention, GatedDeltaNet, SparseMoe
from qcn_inference.loading import Loader
from qcn_inference.model import Model
from qcn_inference.mtp import MtpHead
from qcn_inference.offload.layers import Offload
from qcn_inference.tensors import StoredTensor


def build_model(
    config: ModelConfig,
    tensors: Loader,
    fingerprint: str,
    *,
    mtp: bool,
    offload: Offload | None = None,
) -> Model:
    """Read every tensor of the model and put it together; with `mtp`, its head for drafts too.

    With `offload`, experts lie in host memory; slots for them are taken before anything large is
    read.

    Raises:
        CheckpointError: a tensor is missing or not as expected.
        DeviceMemoryError: there is no room for the experts in host memory.
        torch.OutOfMemoryError: there is none for the rest on the device.
    """
    model = declared_model(config, tensors, fingerprint, mtp=mtp, offload=offload)
    tensors.load()
    if model.device.type == "cuda":
        # Kernels that overlap read weights before what was launched in front of them has ended
        # (`qcn_kernels/overlap`). So all that writes any ends here, before there is a model.
        torch.cuda.synchronize(model.device)
    return model


def declared_model(
    config: ModelConfig,
    tensors: Loader,
    fingerprint: str,
    *,
    mtp: bool,
    offload: Offload | None = None,
) -> Model:
    """Return a model whose matrices are still to be read, by `Loader.load`. Raises as it does."""
    layers = []
    for i in range(len(config.layer_types)):
        with tensors.experts_in_host_memory(offload is not None):
            layers.append(_numbered_layer(config, tensors, i))
    drafting: list[DecoderLayer] = []
    if mtp and has_head(tensors):
        with tensors.experts_in_host_memory(offload is not None and offload.with_head):
            drafting.append(_drafting_layer(config, tensors))
    if offload is not None:
        aside = drafting if offload.with_head else []  # else it lies on the device
        placed = offload.applied_to([*layers, *aside], len(aside))
        layers, drafting = placed[: len(layers)], placed[len(layers) :] or drafting
    model = _around(config, tensors, fingerprint, layers, drafting, offload)
    tensors.refuse_unused()
    return model


def streamed_model(config: ModelConfig, tensors: Loader) -> Model:
    """Return a model that reads its layers anew in every pass over them, and keeps none."""
    layers = StreamedLayers(config, tensors)
    model = _around(config, tensors, "", layers)
    tensors.load()
    return model


@dataclass(frozen=True, slots=True)
class StreamedLayers:
    """The layers of a checkpoint, each read when it is its turn."""

    config: ModelConfig
    tensors: Loader

    def __iter__(self) -> Iterator[DecoderLayer]:
        for i in range(len(self.config.layer_types)):
            layer = _numbered_layer(self.config, self.tensors, i)
            self.tensors.load()
            yield layer


def _around(
    config: ModelConfig,
    tensors: Loader,
    fingerprint: str,
    layers: Iterable[DecoderLayer],
    drafting: Sequence[DecoderLayer] = (),
    offload: Offload | None = None,
) -> Model:
    """Put embedding, norm and head around layers; the head for drafts around its layer, if any."""
    hidden, root = config.hidden_size, model_root(tensors)
    embedding = tensors.matrix(f"{root}.embed_tokens.weight", config.vocab_size, hidden)
    norm = _zero_centred(tensors, f"{root}.norm.weight", hidden)
    if config.tie_word_embeddings:
        tensors.ignore("lm_head.weight")
        head = embedding
    else:
        head = tensors.matrix("lm_head.weight", config.vocab_size, hidden)
    return Model(
        config,
        fingerprint,
        embedding=embedding,
        layers=layers,
        norm=norm,
        head=head,
        mtp=_mtp_head(config, tensors, drafting[0], embedding, head) if drafting else None,
        offload=offload,
    )


def model_root(tensors: Container[str]) -> str:
    """What the names of the model's tensors begin with, but for its head's."""
    wrapped = "model.language_model.embed_tokens.weight" in tensors
    return "model.language_model" if wrapped else "model"


def _numbered_layer(config: ModelConfig, tensors: Loader, i: int) -> DecoderLayer:
    kind = config.layer_types[i]
    slot = config.layer_types[:i].count(kind)
    dense = i in config.dense_layers
    return _layer(config, tensors, f"{model_root(tensors)}.layers.{i}", kind, slot, dense=dense)


def has_head(tensors: Container[str]) -> bool:
    """Whether there is a multi-token-prediction head that shares the model's embedding."""
    return "mtp.fc.weight" in tensors and "mtp.embed_tokens.weight" not in tensors


def _drafting_layer(config: ModelConfig, tensors: Loader) -> DecoderLayer:
    dense = config.num_experts == 0
    return _layer(config, tensors, "mtp.layers.0", "full_attention", 0, dense=dense)


def _mtp_head(
    config: ModelConfig, tensors: Loader, layer: DecoderLayer, embedding: Tensor, head: Tensor
) -> MtpHead:
    hidden = config.hidden_size
    return MtpHead(
        config=replace(config, layer_types=("full_attention",)),
        embedding=embedding,
        embedding_norm=_zero_centred(tensors, "mtp.pre_fc_norm_embedding.weight", hidden),
        hidden_norm=_zero_centred(tensors, "mtp.pre_fc_norm_hidden.weight", hidden),
        in_proj=tensors.matrix("mtp.fc.weight", hidden, 2 * hidden),
        layer=layer,
        norm=_zero_centred(tensors, "mtp.norm.weight", hidden),
        head=head,
    )


def _layer(
    config: ModelConfig, tensors: Loader, prefix: str, kind: LayerType, slot: int, *, dense: bool
) -> DecoderLayer:
    linear = kind == "linear_attention"
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
            if dense
            else _moe(config, tensors, f"{prefix}.mlp")
        ),
    )


def _deltanet(config: ModelConfig, tensors: Loader, prefix: str, slot: int) -> GatedDeltaNet:
    hidden, value_heads = config.hidden_size, config.linear_num_value_heads
    if f"{prefix}.in_proj_qkv.weight" in tensors:
        rows = {
            "qkv": config.linear_conv_dim,
            "z": config.linear_value_dim,
            "b": value_heads,
            "a": value_heads,
        }
        in_proj = _stacked(
            tensors, hidden, {f"{prefix}.in_proj_{name}.weight": rows[name] for name in rows}
        )
    else:
        in_proj = _ungrouped(config, tensors, prefix)
    kernel = config.linear_conv_kernel_dim
    conv = tensors.take(f"{prefix}.conv1d.weight", config.linear_conv_dim, 1, kernel)
    return GatedDeltaNet(
        config=config,
        slot=slot,
        in_proj=in_proj,
        conv=conv.squeeze(1).T.contiguous(),
        neg_a=-tensors.take(f"{prefix}.A_log", value_heads).exp(),
        dt_bias=tensors.take(f"{prefix}.dt_bias", value_heads),
        norm=tensors.take(f"{prefix}.norm.weight", config.linear_value_head_dim),
        out_proj=_matrix(tensors, f"{prefix}.out_proj.weight", hidden, config.linear_value_dim),
    )


def _ungrouped(config: ModelConfig, tensors: Loader, prefix: str) -> Weight:
    """Stack the rows of q, k, v, z, b and a, which are interleaved by key head on disk."""
    hidden, key_heads = config.hidden_size, config.linear_num_key_heads
    shared = config.linear_num_value_heads // key_heads
    key_dim, value_dim = config.linear_key_head_dim, shared * config.linear_value_head_dim
    rows = (key_dim, key_dim, value_dim, value_dim, shared, shared)  # of one key head
    qkvz = tensors.find(f"{prefix}.in_proj_qkvz.weight", key_heads * sum(rows[:4]), hidden)
    ba = tensors.find(f"{prefix}.in_proj_ba.weight", key_heads * sum(rows[4:]), hidden)
    q, k, v, z = _cut(qkvz, rows[:4], groups=key_heads)
    b, a = _cut(ba, rows[4:], groups=key_heads)
    return _fused(tensors, [q, k, v, z, b, a])


def _attention(config: ModelConfig, tensors: Loader, prefix: str, slot: int) -> GatedAttention:
    hidden, head_dim = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    def fused(kind: str, *shape: int) -> list[_Rows]:
        """Return the rows of q, k, v and gate; `q_proj` holds, per head, q | gate."""
        kv = kv_heads * head_dim
        q_gate = tensors.find(f"{prefix}.q_proj.{kind}", 2 * heads * head_dim, *shape)
        stored_k = tensors.find(f"{prefix}.k_proj.{kind}", kv, *shape)
        stored_v = tensors.find(f"{prefix}.v_proj.{kind}", kv, *shape)
        q, gate = _cut(q_gate, (head_dim, head_dim), groups=heads)
        return [q, _whole(stored_k), _whole(stored_v), gate]

    q_norm = _zero_centred(tensors, f"{prefix}.q_norm.weight", head_dim)
    k_norm = _zero_centred(tensors, f"{prefix}.k_norm.weight", head_dim)
    biased = config.attention_bias
    return GatedAttention(
        config=config,
        slot=slot,
        in_proj=_fused(tensors, fused("weight", hidden)),
        in_bias=_fused_plain(tensors, fused("bias")) if biased else None,
        qk_norm=torch.cat((q_norm.expand(heads, -1), k_norm.expand(kv_heads, -1))),
        out_proj=_matrix(tensors, f"{prefix}.o_proj.weight", hidden, heads * head_dim),
        out_bias=tensors.matrix(f"{prefix}.o_proj.bias", hidden) if biased else None,
    )


def _moe(config: ModelConfig, tensors: Loader, prefix: str) -> SparseMoe:
    hidden, count = config.hidden_size, config.num_experts
    size, shared_size = config.moe_intermediate_size, config.shared_expert_intermediate_size
    packed = f"{prefix}.experts.gate_up_proj"
    gate_up: Matrices
    down: Matrices
    if packed in tensors or f"{packed}.codes" in tensors:
        gate_up = tensors.experts(packed, count, 2 * size, hidden)
        down = tensors.experts(f"{prefix}.experts.down_proj", count, hidden, size)
    else:
        gate_up, down = _stacked_experts(config, tensors, f"{prefix}.experts")
    rows = {
        f"{prefix}.shared_expert.gate_proj.weight": shared_size,
        f"{prefix}.shared_expert.up_proj.weight": shared_size,
        f"{prefix}.gate.weight": count,
        f"{prefix}.shared_expert_gate.weight": 1,
    }
    return SparseMoe(
        config=config,
        in_proj=_stacked(tensors, hidden, rows),
        gate_up=gate_up,
        down=down,
        shared_down=_matrix(
            tensors, f"{prefix}.shared_expert.down_proj.weight", hidden, shared_size
        ),
    )


def _stacked_experts(
    config: ModelConfig, tensors: Loader, prefix: str
) -> tuple[Matrices, Matrices]:
    """Pack experts that are stored one by one; in FP8, where they are and can be run so."""
    count, hidden, size = config.num_experts, config.hidden_size, config.moe_intermediate_size
    # All are found before memory is taken for as many as config.json speaks of.
    stored = [
        (
            tensors.find(f"{prefix}.{i}.gate_proj.weight", size, hidden),
            tensors.find(f"{prefix}.{i}.up_proj.weight", size, hidden),
            tensors.find(f"{prefix}.{i}.down_proj.weight", hidden, size),
        )
        for i in range(count)
    ]
    whole = hidden % BLOCK == size % BLOCK == 0
    if whole and all(tensors.keeps_fp8(tensor) for expert in stored for tensor in expert):
        return _stacked_fp8(config, tensors, stored)
    gate_up = tensors.empty_experts(count, 2 * size, hidden)
    down = tensors.empty_experts(count, hidden, size)
    for i, (gate, up, one_down) in enumerate(stored):
        tensors.place(gate, gate_up[i, :size])
        tensors.place(up, gate_up[i, size:])
        tensors.place(one_down, down[i])
    return gate_up, down


def _stacked_fp8(
    config: ModelConfig, tensors: Loader, stored: Sequence[tuple[StoredTensor, ...]]
) -> tuple[Fp8Matrices, Fp8Matrices]:
    count, hidden, size = config.num_experts, config.hidden_size, config.moe_intermediate_size
    gate_up = tensors.empty_fp8_experts(count, 2 * size, hidden)
    down = tensors.empty_fp8_experts(count, hidden, size)
    half = size // BLOCK
    for i, (gate, up, one_down) in enumerate(stored):
        values, scale = gate_up.values[i], gate_up.scale_inv[i]
        tensors.place_fp8(gate, Fp8Matrices(values[:size], scale[:half]))
        tensors.place_fp8(up, Fp8Matrices(values[size:], scale[half:]))
        tensors.place_fp8(one_down, Fp8Matrices(down.values[i], down.scale_inv[i]))
    return gate_up, down


def _mlp(tensors: Loader, prefix: str, size: int, hidden: int) -> DenseMlp:
    rows = {f"{prefix}.gate_proj.weight": size, f"{prefix}.up_proj.weight": size}
    return DenseMlp(
        gate_up=_stacked(tensors, hidden, rows),
        down=_matrix(tensors, f"{prefix}.down_proj.weight", hidden, size),
    )


def _matrix(tensors: Loader, name: str, rows: int, columns: int) -> Weight:
    """Read a matrix that stands alone."""
    return _fused(tensors, [_whole(tensors.find(name, rows, columns))])


def _stacked(tensors: Loader, columns: int, rows: Mapping[str, int]) -> Weight:
    """Put stored matrices of these numbers of rows under one another."""
    return _fused(
        tensors, [_whole(tensors.find(name, count, columns)) for name, count in rows.items()]
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a stored tensor that are to lie together: part `number` of each of its groups."""

    tensor: StoredTensor
    sizes: tuple[int, ...]  # of the parts that stand side by side in a group
    groups: int
    number: int

    @property
    def count(self) -> int:
        """How many rows that is."""
        return self.groups * self.sizes[self.number]

    def shaped(self, rows: Tensor) -> Tensor:
        """Return so many rows, or their scales, as `Loader.place` wants a part."""
        return rows if len(self.sizes) == 1 else rows.view(self.groups, -1, *rows.shape[1:])


def _whole(tensor: StoredTensor) -> _Rows:
    return _Rows(tensor, tensor.shape[:1], 1, 0)


def _cut(tensor: StoredTensor, sizes: tuple[int, ...], *, groups: int) -> list[_Rows]:
    return [_Rows(tensor, sizes, groups, number) for number in range(len(sizes))]


def _fused(tensors: Loader, rows: Sequence[_Rows]) -> Weight:
    """Put rows under one another; those that may stay in FP8 do, in parts of their own.

    They may where no block of 128 rows is cut: a matrix that stands alone may end inside one.
    """

    def stays_fp8(one: _Rows) -> bool:
        cut = len(rows) > 1 and any(size % BLOCK for size in one.sizes)
        return not cut and tensors.keeps_fp8(one.tensor)

    runs = [(fp8, list(run)) for fp8, run in groupby(rows, stays_fp8)]
    names = [name for _, run in runs for name in {one.tensor.name for one in run}]
    if not any(fp8 for fp8, _ in runs) or len(names) > len(set(names)):  # a tensor is in one part
        return _fused_plain(tensors, rows)
    parts = [_fused_fp8(tensors, run) if fp8 else _fused_plain(tensors, run) for fp8, run in runs]
    return Stacked(tuple(parts), tensors.dtype)


def _fused_plain(tensors: Loader, rows: Sequence[_Rows]) -> Tensor:
    counts = [one.count for one in rows]
    fused = tensors.empty(sum(counts), *rows[0].tensor.shape[1:])
    parts = zip(rows, fused.split_with_sizes(counts), strict=True)
    places = [(one.tensor, one.shaped(part)) for one, part in parts]
    for tensor in dict.fromkeys(one.tensor for one in rows):
        tensors.place(tensor, *(place for of, place in places if of == tensor))
    return fused


def _fused_fp8(tensors: Loader, rows: Sequence[_Rows]) -> Fp8Matrices:
    counts = [one.count for one in rows]
    fused = tensors.empty_fp8(sum(counts), rows[0].tensor.shape[1])
    values = fused.values.split_with_sizes(counts)
    scales = fused.scale_inv.split_with_sizes([-(-count // BLOCK) for count in counts])
    places = [
        (one.tensor, Fp8Matrices(one.shaped(value), one.shaped(scale)))
        for one, value, scale in zip(rows, values, scales, strict=True)
    ]
    for tensor in dict.fromkeys(one.tensor for one in rows):
        tensors.place_fp8(tensor, *(place for of, place in places if of == tensor))
    return fused


def _zero_centred(tensors: Loader, name: str, size: int) -> Tensor:
    """Read the weight of a zero-centred norm as the scale it stands for, fp32."""
    return 1.0 + tensors.take(name, size)
