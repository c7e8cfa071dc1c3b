"""A sparse mixture of SwiGLU experts, token by token (arXiv 1701.06538, 2002.05202)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def mixture(
    x: Tensor,
    *,
    logits: Tensor,
    gate_up: Tensor,
    down: Tensor,
    top_k: int,
    normalise: bool,
    rounded: Callable[[Tensor], Tensor] = lambda activation: activation,
) -> Tensor:
    """Return for each token the weighted sum of its `top_k` experts.

    Args:
        x: [T, hidden].
        logits: [T, experts], the router's.
        gate_up: [experts, 2 · intermediate, hidden], the gate's rows first.
        down: [experts, hidden, intermediate].
        top_k: experts per token.
        normalise: whether the chosen probabilities are scaled to sum to 1.
        rounded: what is done to the input [T, n] of each product, where it is stored in fewer bits.

    Returns:
        [T, hidden].
    """
    x = rounded(x)
    outputs = torch.zeros_like(x)
    for t, probabilities in enumerate(logits.softmax(-1)):
        chosen = probabilities.argsort(descending=True, stable=True)[:top_k]
        total = probabilities[chosen].sum() if normalise else 1.0
        for expert in chosen.tolist():
            gate, up = (gate_up[expert] @ x[t]).chunk(2)
            hidden = rounded((functional.silu(gate) * up).unsqueeze(0)).squeeze(0)
            outputs[t] += probabilities[expert] / total * (down[expert] @ hidden)
    return outputs
