"""The gated delta rule, token by token, as its paper writes it (arXiv 2412.06464, equation 10)."""

import torch
from torch import Tensor


def gated_delta_rule(
    *, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> Tensor:
    """Read T tokens into `state` one after the other; return what each reads out.

    Decay first, then correct what the state predicts for the key, then read:
    `S = exp(g) S;  d = beta (v - Sᵀ k);  S = S + k dᵀ;  o = Sᵀ q`.

    Args:
        q: [T, key_heads, key_dim], l2-normalised and scaled.
        k: [T, key_heads, key_dim], l2-normalised.
        v: [T, value_heads, value_dim]; key head h serves the value heads h·r … h·r + r - 1.
        g: [T, value_heads], logarithm of the decay, at most 0.
        beta: [T, value_heads], the share of the error that is corrected, 0 to 1.
        state: [value_heads, key_dim, value_dim]; updated in place. All tensors share its dtype.

    Returns:
        [T, value_heads, value_dim].
    """
    shared = v.shape[1] // k.shape[1]
    q = q.repeat_interleave(shared, dim=1)
    k = k.repeat_interleave(shared, dim=1)
    outputs = []
    for q_t, k_t, v_t, g_t, beta_t in zip(q, k, v, g, beta, strict=True):
        state *= g_t.exp()[:, None, None]
        error = beta_t[:, None] * (v_t - torch.einsum("hkv,hk->hv", state, k_t))
        state += torch.einsum("hk,hv->hkv", k_t, error)
        outputs.append(torch.einsum("hkv,hk->hv", state, q_t))
    return torch.stack(outputs)
