"""A sparse mixture of SwiGLU experts, token by token (arXiv 1701.06538, 2002.05202)."""

import torch
from torch import Tensor
from torch.nn import functional


def mixture(
    x: Tensor, *, logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int, normalise: bool
) -> Tensor:
    """Return for each token the weighted sum of its `top_k` experts.

    Args:
        x: [T, hidden].
        logits: [T, experts], the router's.
        gate_up: [experts, 2 · intermediate, hidden], the gate's rows first.
        down: [experts, hidden, intermediate].
        top_k: experts per token.
        normalise: whether the chosen probabilities are scaled to sum to 1.

    Returns:
        [T, hidden].
    """
    outputs = torch.zeros_like(x)
    for t, probabilities in enumerate(logits.softmax(-1)):
        chosen = probabilities.argsort(descending=True, stable=True)[:top_k]
        total = probabilities[chosen].sum() if normalise else 1.0
        for expert in chosen.tolist():
            gate, up = (gate_up[expert] @ x[t]).chunk(2)
            hidden = functional.silu(gate) * up
            outputs[t] += probabilities[expert] / total * (down[expert] @ hidden)
    return outputs
