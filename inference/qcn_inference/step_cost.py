"""What a step of a model costs, plain or verifying a draft, and whether a draft promises to pay.

Pure arithmetic, for one who drafts (`speculation.py`) and one who plans (`planning`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qcn_inference.config import ModelConfig

ROWS = (2, 4, 8, 16)
"""Tokens of a step that verifies: the one chosen last, and a draft. Few sizes, because each is
compiled at its first use (oneDNN's products on the CPU, a graph on a GPU)."""
HEAD_ROWS = (2, 4)
"""As ROWS, where the head drafts: each of its guesses rests on the one before."""
HEAD_PRIOR = 0.7
"""How often the head's guess comes true, before anything is known of a request. Below what is
published of such heads (DeepSeek-V3: 0.85 to 0.9), which see all of the text; not measured here."""
WORTH = 1.1
"""A draft must promise this many times what a plain step does: what costs are reckoned is rough."""

CALLS = 1 / 3
"""Share of a plain step that reads no weights. This and VERIFYING are fitted to qcn-nano, whose
steps over 1, 2, 4, 8 and 16 rows behind 2,000 tokens took 7.5, 11.4, 13.9, 14.6 and 15.3 ms on one
core of a busy machine; on a GPU with graphs both are measured when the model is warmed up."""
VERIFYING = 0.3
"""What the calls that only a verifying step makes take, as a share of a plain step."""
FINEST = 1 / 8
"""To a multiple of this measured costs are rounded: what varies by less decides nothing."""


@dataclass(frozen=True, slots=True)
class ExpertReads:
    """What it takes to read an expert that may not lie on the GPU, on average over all of them.

    In bytes: as many as the GPU reads of its own memory meanwhile.
    """

    stepping: float  # in a plain step
    verifying: float
    guessing: float  # by the head for drafts


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step takes, reckoned by the bytes that it reads, or as it was measured on a device.

    Rows share what they read but for experts: each row brings in some that no other asked for. Keys
    and values are read once, so behind a long text more rows weigh less.
    """

    weights: int  # bytes that every step reads, whatever its rows
    layers: int  # with experts
    experts: int  # of each of these layers
    chosen: int  # by each row
    expert: float  # bytes of one, in a step over one row
    expert_verified: float  # the same, in a step over more
    past: int  # bytes of keys and values, for each token of the text
    guess: float  # bytes that the head for drafts reads, once for each guess
    measured: Mapping[int, float] = field(default_factory=dict)
    """What a step over so many rows takes behind little text, as a multiple of a plain one."""

    @classmethod
    def of(cls, config: ModelConfig, reads: ExpertReads | None = None) -> "StepCost":
        """The cost of one model's steps; `reads` where not all of its experts lie on the GPU."""
        element = 2 if config.fp8_block is None else 1
        full = config.layer_types.count("full_attention")
        linear = len(config.layer_types) - full
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        attention = (3 * heads + 2 * kv_heads) * config.head_dim
        deltanet = 2 * config.linear_key_dim + 3 * config.linear_value_dim
        sparse = len(config.layer_types) - len(config.dense_layers)
        width = full * attention + linear * deltanet + config.vocab_size
        width += sparse * (config.num_experts + 3 * config.shared_expert_intermediate_size)
        width += len(config.dense_layers) * 3 * config.intermediate_size
        state = 4 * linear * config.linear_value_dim * config.linear_key_head_dim
        guess = attention + 2 * config.hidden_size + config.vocab_size
        if config.num_experts:
            guess += config.num_experts + 3 * config.shared_expert_intermediate_size
        else:
            guess += 3 * config.intermediate_size
        expert = element * 3 * config.hidden_size * config.moe_intermediate_size
        reads = reads or ExpertReads(expert, expert, expert)
        return cls(
            weights=element * config.hidden_size * width + state,
            layers=sparse,
            experts=config.num_experts,
            chosen=config.num_experts_per_tok,
            expert=reads.stepping,
            expert_verified=reads.verifying,
            past=2 * 2 * full * kv_heads * config.head_dim,
            guess=element * config.hidden_size * guess
            + config.num_experts_per_tok * reads.guessing,
        )

    def measured_as(self, times: Mapping[int, float]) -> "StepCost":
        """Return the cost on a device where steps over so many rows take so many plain ones."""
        return replace(
            self, measured={rows: round(time / FINEST) * FINEST for rows, time in times.items()}
        )

    def verifying(self, rows: int, position: int) -> float:
        """What verifying so many rows behind a text takes, as a multiple of a plain step."""
        if rows in self.measured:
            plain, past = self._bytes(1, 0), position * self.past
            return (self.measured[rows] * plain + past) / (plain + past)
        share = self._bytes(rows, position) / self._bytes(1, position)
        return CALLS + (1 - CALLS) * share + VERIFYING

    def guessing(self, position: int) -> float:
        """What one guess of the head takes, as a multiple of a plain step."""
        return self.guess / self._bytes(1, position)

    def _bytes(self, rows: int, position: int) -> float:
        idle = (1 - self.chosen / self.experts) ** rows if self.experts else 1.0
        expert = self.expert if rows == 1 else self.expert_verified
        read = self.layers * self.experts * (1 - idle) * expert
        return self.weights + read + position * self.past

    def head_pays(self, position: int) -> bool:
        """Whether drafts by the head promise to pay, before anything is known of a request."""
        return any(
            expected_by_head(HEAD_PRIOR, rows)
            > WORTH * (self.verifying(rows, position) + (rows - 1) * self.guessing(position))
            for rows in HEAD_ROWS
        )


def expected_by_head(share: float, rows: int) -> float:
    """Tokens that a step brings whose guesses, behind the first row, come true in this share."""
    return sum(share**drafted for drafted in range(rows))
