"""Choosing tokens where the logits are. See README.md.

`choice.py` says what runs; Triton is imported where its kernels do.
"""

from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.sampling import reference

__all__ = ["MOST_SELECTED", "greedy", "sample"]

MOST_SELECTED = 64
"""Up to this top_k the kernels select; beyond it, and for none, torch sorts the vocabulary."""


def greedy(logits: Tensor) -> Tensor:
    """Return the ids [T] int64 of the largest logits of [T, vocabulary], of equals the first."""
    if uses_triton(logits):
        from qcn_kernels.sampling import triton

        return triton.greedy(logits)
    return reference.greedy(logits)


def sample(
    logits: Tensor, *, temperature: float, top_k: int, top_p: float, uniform: Tensor
) -> Tensor:
    """Draw one token for each row; nothing waits for the device.

    Args:
        logits: [T, vocabulary] fp32.
        temperature: more than 0.
        top_k: how many of the largest logits are kept, all for 0.
        top_p: of what is kept, the most probable tokens whose probabilities together reach this.
        uniform: [T] fp32 in [0, 1), on logits' device: `torch.rand` with a seeded generator there.

    Returns:
        [T] int64: the first token, in descending order of logits, of equals the lower id first,
        with which the probabilities that are left exceed `uniform` of their sum.
    """
    if uses_triton(logits) and 0 < top_k <= MOST_SELECTED:
        from qcn_kernels.sampling import triton

        return triton.sample(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform
        )
    return reference.sample(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform
    )
