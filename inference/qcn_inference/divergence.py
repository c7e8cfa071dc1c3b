"""How far a quantised model is from the one it was made of: KL divergence, token by token.

Both models read the same real text, layer by layer from disk, so that neither needs to fit in
memory. At each token, KL(p || q) = Σ p · (log p - log q) over the vocabulary, in nats, p being the
original's distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qcn_inference.model import Model
from qcn_inference.tokenizer import Tokenizer

TOKENS = 1024
"""Of text: two blocks, so layers are read twice. The 99th percentile is the tenth worst token."""
ROWS = 64  # of logits at a time


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL divergence in nats over the tokens of a text."""

    mean: float
    percentile_99: float
    tokens: int

    def exceeds(self, bound: "Divergence") -> bool:
        """Tell whether the mean or the 99th percentile is above that of `bound`, or no number."""
        return not (self.mean <= bound.mean and self.percentile_99 <= bound.percentile_99)


def measure(original: Model, quantised: Model, ids: Sequence[int]) -> Divergence:
    """Let both read `ids` and compare what they expect next at each."""
    first, second = (
        model.prefill(ids, model.new_state(), all_logits=True) for model in (original, quantised)
    )
    each = divergences(first, second)
    return Divergence(float(each.mean()), float(each.quantile(0.99)), len(ids))


def divergences(original: Tensor, quantised: Tensor) -> Tensor:
    """Return KL(original || quantised) [T] fp32 of logits [T, vocab]."""
    parts = []
    for p_logits, q_logits in zip(
        torch.split(original, ROWS), torch.split(quantised, ROWS), strict=True
    ):
        p, q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
        parts.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(parts).float()


def sample_text(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of some real Python: the engine's own source, which is wherever it is."""
    ids: list[int] = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        ids += tokenizer.encode_plain(path.read_text(encoding="utf-8"))
        if len(ids) >= TOKENS:
            break
    return ids[:TOKENS]
