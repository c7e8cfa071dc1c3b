"""What a model weighs and costs, from its shape alone: nothing is loaded for it."""

from dataclasses import dataclass, replace

import torch
from qcn_kernels.fp8 import BLOCK

from qcn_inference.config import KvCacheDtype, ModelConfig
from qcn_inference.device import working_bytes
from qcn_inference.mtp import MOST_TOKENS
from qcn_inference.pages import PAGE, dtype_of_pages, page_bytes

FP8_BITS = 8 + 32 / BLOCK**2  # a scale of 32 bits for each block of 128 x 128
FOUR_BITS = 4 + 16 / 32 + 32 / 256  # ours: two scales for each 32 weights, two for each 256
LOST_BYTES = 5 << 20
"""Of each layer, which torch's allocator loses: it takes memory of a GPU by 2 and by 20 MiB. Of
Qwen3-Coder-Next on 24,000 MiB of an H200 it lost 2.6 MiB a layer."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Bits of a weight: of the experts, of the other matrices, of the embedding and the head.

    Routers and gates, which publishers leave out of FP8, have as many as the embedding.
    """

    name: str
    expert_bits: float
    other_bits: float
    table_bits: float = 16

    def on_cpu(self) -> "WeightFormat":
        """As the CPU holds it, which multiplies no FP8: that is dequantised at load."""
        experts, others = (
            16 if bits == FP8_BITS else bits for bits in (self.expert_bits, self.other_bits)
        )
        return replace(self, expert_bits=experts, other_bits=others)


FORMATS = (
    WeightFormat("bf16", 16, 16),
    WeightFormat("fp8", FP8_BITS, FP8_BITS),
    WeightFormat("int4", FOUR_BITS, 16),
)
"""Best quality first, as the engine holds them."""


def as_loaded(config: ModelConfig, bits: int, expert_bits: float | None = None) -> WeightFormat:
    """The format in which a GPU holds a checkpoint.

    Args:
        config: its own. FP8 in blocks of 128 stays so.
        bits: of a weight that is neither FP8 nor in groups.
        expert_bits: of an expert's weight, scales included, where experts are in groups.
    """
    fp8 = config.fp8_block == (BLOCK, BLOCK)
    name, other_bits = ("fp8", FP8_BITS) if fp8 else (f"{bits} bits", bits)
    if expert_bits is None:
        return WeightFormat(name, other_bits, other_bits, bits)
    return WeightFormat("int4" if expert_bits < 8 else name, expert_bits, other_bits, bits)


@dataclass(frozen=True, slots=True)
class DraftHead:
    """The checkpoint's head for multi-token prediction (`mtp.py`)."""

    core_bytes: int  # of all but its experts
    expert_bytes: int  # of all of them
    alike: bool  # they may share slots with the model's

    @classmethod
    def of_shape(cls, config: ModelConfig, stored: WeightFormat) -> "DraftHead":
        """Count it from the model's shape: who quantises a model's experts leaves the head's."""
        heads = config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim
        width = 3 * heads + 2 * kv + 2 * config.hidden_size
        width += 3 * (
            config.shared_expert_intermediate_size
            if config.num_experts
            else config.intermediate_size
        )
        experts = 3 * config.num_experts * config.moe_intermediate_size
        bits = config.hidden_size * stored.other_bits
        gates = config.hidden_size * config.num_experts * stored.table_bits
        return cls(
            core_bytes=round((width * bits + gates) / 8),
            expert_bytes=round(experts * bits / 8),
            alike=stored.expert_bits == stored.other_bits,
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a model in one format. Sizes of KV and state are those of its caches here."""

    config: ModelConfig
    format: WeightFormat
    head: DraftHead | None = None  # beside all that is counted here
    kept: KvCacheDtype = "auto"  # keys and values, but for the head's

    @property
    def head_cache_bytes(self) -> int:
        """What the head for drafts keeps of requests."""
        return 4 * self.config.num_key_value_heads * self.config.head_dim * MOST_TOKENS

    @property
    def sparse_layers(self) -> int:
        """Layers with experts."""
        return len(self.config.layer_types) - len(self.config.dense_layers)

    @property
    def experts(self) -> int:
        """Experts of all layers."""
        return self.sparse_layers * self.config.num_experts

    @property
    def expert_bytes(self) -> int:
        """One expert of one layer: gate, up and down."""
        weights = 3 * self.config.hidden_size * self.config.moe_intermediate_size
        return round(weights * self.format.expert_bits / 8)

    @property
    def table_bytes(self) -> int:
        """The head; the embedding as well, where they are one."""
        weights = self.config.vocab_size * self.config.hidden_size
        return round(weights * self.format.table_bits / 8)

    @property
    def core_bytes(self) -> int:
        """What every token reads, the experts left out: mixers, shared experts, routers, head."""
        config = self.config
        decay = 2 * config.hidden_size * config.linear_num_value_heads
        router = config.hidden_size * (config.num_experts + 1)
        gates = self._linear_layers * decay + self.sparse_layers * router
        bits = self._core_weights * self.format.other_bits + gates * self.format.table_bits
        return round(bits / 8) + self.table_bytes

    @property
    def _core_weights(self) -> int:
        """Weights of the matrices that every token meets: mixers, shared experts, dense layers."""
        config = self.config
        heads = config.num_attention_heads * config.head_dim
        kv = config.num_key_value_heads * config.head_dim
        full = config.hidden_size * (3 * heads + 2 * kv)
        linear = config.hidden_size * (2 * config.linear_key_dim + 3 * config.linear_value_dim)
        shared = 3 * config.hidden_size * config.shared_expert_intermediate_size
        dense = 3 * config.hidden_size * config.intermediate_size
        return (
            self.full_layers * full
            + self._linear_layers * linear
            + self.sparse_layers * shared
            + len(config.dense_layers) * dense
        )

    @property
    def resident_bytes(self) -> int:
        """All weights but the experts'."""
        return self.core_bytes + (0 if self.config.tie_word_embeddings else self.table_bytes)

    @property
    def all_bytes(self) -> int:
        """All weights."""
        return self.resident_bytes + self.experts * self.expert_bytes

    @property
    def full_layers(self) -> int:
        """Layers of full attention."""
        return self.config.layer_types.count("full_attention")

    @property
    def _linear_layers(self) -> int:
        return len(self.config.layer_types) - self.full_layers

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token; those of the model's dtype as in bf16."""
        return page_bytes(self.config, dtype_of_pages(self.kept, torch.bfloat16)) // PAGE

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint: recurrent and convolution state in fp32."""
        config = self.config
        recurrent = config.linear_value_dim * config.linear_key_head_dim
        convolution = (config.linear_conv_kernel_dim - 1) * config.linear_conv_dim
        return 4 * self._linear_layers * (recurrent + convolution)

    @property
    def working_bytes(self) -> int:
        """What a GPU needs beside weights, KV and checkpoints."""
        return working_bytes(self.config) + LOST_BYTES * len(self.config.layer_types)

    @property
    def expert_operations(self) -> int:
        """Floating-point operations of one token in one expert."""
        return 6 * self.config.hidden_size * self.config.moe_intermediate_size

    @property
    def fp8_operations(self) -> int:
        """Floating-point operations of one token with weights that are FP8."""
        chosen = self.sparse_layers * self.config.num_experts_per_tok * self.expert_operations
        experts = chosen if self.format.expert_bits == FP8_BITS else 0
        others = 2 * self._core_weights if self.format.other_bits == FP8_BITS else 0
        return experts + others

    def read_share(self, tokens: int) -> float:
        """Which share of a layer's experts so many tokens need, where all are equally likely."""
        if not self.config.num_experts:
            return 0.0
        missed = 1 - self.config.num_experts_per_tok / self.config.num_experts
        return 1 - float(missed**tokens)
