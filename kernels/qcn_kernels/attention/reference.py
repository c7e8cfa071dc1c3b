"""Causal grouped-query attention written out (arXiv 2305.13245)."""

import torch
from torch import Tensor


def attention(*, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let T new tokens attend to the S tokens that end with them.

    Args:
        q: [heads, T, head_dim].
        k, v: [kv_heads, S, head_dim], S ≥ T; the last T are the queries' own. KV head h serves the
            query heads h·r … h·r + r - 1.

    Returns:
        [heads, T, head_dim].
    """
    heads, tokens, head_dim = q.shape
    kv_heads, length, _ = k.shape
    k = k.repeat_interleave(heads // kv_heads, dim=0)
    v = v.repeat_interleave(heads // kv_heads, dim=0)
    scores = q @ k.mT * head_dim**-0.5
    later = torch.ones(tokens, length, dtype=torch.bool).triu(length - tokens + 1)
    probabilities = scores.masked_fill(later, float("-inf")).softmax(-1)
    return torch.matmul(probabilities, v)
