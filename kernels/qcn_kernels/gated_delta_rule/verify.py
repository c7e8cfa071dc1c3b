"""A few drafted tokens read without touching the state, then the first of them taken into it.

What a token changes in the state is its key times the error it corrects: `S ← S + k dᵀ`. An error
depends on the tokens in front of it alone, so the errors of all drafted tokens, found in one go
against the state as it is, say what it becomes behind any number of them. Kept are T rows of `k`
and `d` and T decays for each head; the state is read once to verify and written once to commit.

This is the CPU's way; on a GPU `gated_delta_net.triton_verify` does the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Verified:
    """What T tokens would do to the state in front of them."""

    k: Tensor  # [T, key_heads, key_dim]
    total: Tensor  # [T, value_heads] fp32, logarithm of the decay since that state
    errors: Tensor  # [T, value_heads, value_dim] fp32, what each token corrects


def verify_gated_delta_rule(
    *, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Verified]:
    """Return what T tokens would read out, [T, value_heads, value_dim], and what they would change.

    Args:
        q: [T, key_heads, key_dim] fp32, l2-normalised and scaled.
        k: [T, key_heads, key_dim], l2-normalised.
        v: [T, value_heads, value_dim]; key head h serves value heads h·r … h·r + r - 1.
        g: [T, value_heads] fp32, logarithm of the decay, at most 0.
        beta: [T, value_heads] fp32.
        state: [value_heads, key_dim, value_dim] fp32, left as it is.
    """
    tokens = len(k)
    total = g.cumsum(0)
    keys_queries = torch.cat((k, q)).transpose(0, 1)  # [key_heads, 2 T, key_dim]
    scores = _spread(keys_queries @ keys_queries[:, :tokens].mT, v)
    read = _spread(keys_queries, v) @ state
    by_head = total.T.unsqueeze(2)
    # Only differences ≤ 0 are exponentiated.
    within = (by_head - by_head.mT).tril_().exp_().tril_()
    from_start, strength = by_head.exp(), beta.T.unsqueeze(2)
    missing = (v.transpose(0, 1) - from_start * read[:, :tokens]).mul_(strength)
    system = (scores[:, :tokens] * within).mul_(strength)  # only what is below the diagonal is read
    errors = torch.linalg.solve_triangular(system, missing, upper=False, unitriangular=True)
    out = (scores[:, tokens:] * within) @ errors + from_start * read[:, tokens:]
    return out.transpose(0, 1), Verified(k, total, errors.transpose(0, 1))


def commit_gated_delta_rule(verified: Verified, tokens: int, *, state: Tensor) -> None:
    """Read the first `tokens` of those verified into the very state that they were verified on."""
    if not tokens:
        return
    errors, total = verified.errors[:tokens], verified.total[:tokens]
    keys = _spread(verified.k[:tokens].transpose(0, 1), errors)
    to_end = (total[-1] - total).exp().T.unsqueeze(2)
    state.mul_(total[-1].exp()[:, None, None]).baddbmm_((keys * to_end).mT, errors.transpose(0, 1))


def _spread(x: Tensor, v: Tensor) -> Tensor:
    """[key_heads, ...] for each of v's value heads."""
    shared = v.shape[1] // len(x)
    return x.repeat_interleave(shared, dim=0) if shared > 1 else x
