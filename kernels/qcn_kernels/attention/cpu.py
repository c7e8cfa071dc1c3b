"""Attention on the CPU: torch's fused kernel, or runs of queries where its bf16 products are slow.

With AMX the fused kernel takes a half to a quarter of the time of `by_runs`; measured on one quiet
core of an Intel Xeon for 512 tokens behind 3,584, 4 heads of 64: 6.9 ms in bf16 against 21.9.
Without, its bf16 products are slow: 34 ms against 12 on Zen 5 for 1,024 tokens, 4 heads of 256. In
fp32 the two are close on both.
"""

import torch
from torch import Tensor
from torch.nn import functional

MOST_MASKED = 1 << 24  # elements of a mask in memory at once: fewer queries for a long past
QUERY_RUN = 128  # queries whose scores are in memory at once,
MAX_SCORES = 1 << 20  # and fewer of them for a long past: scores per head

HAS_AMX = torch.cpu._is_amx_tile_supported()


def attention(*, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let T new tokens attend to the S tokens that end with them; scores divided by √head_dim.

    Args:
        q: [heads, T, head_dim]; query heads h·r … h·r + r - 1 share KV head h.
        k, v: [kv_heads, S, head_dim] of q's dtype, S ≥ T.

    Returns:
        [heads, T, head_dim] of q's dtype; softmax in fp32.
    """
    if HAS_AMX or q.dtype == torch.float32:
        return fused(q=q, k=k, v=v)
    return by_runs(q=q, k=k, v=v)


def fused(*, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` by torch's kernel, which wants a mask wherever there is a past."""
    tokens, length = q.shape[1], k.shape[1]
    run = max(1, min(tokens, MOST_MASKED // length))
    out = torch.empty_like(q)
    for start in range(0, tokens, run):
        stop = min(start + run, tokens)
        size, visible = stop - start, length - tokens + stop
        mask = q.new_zeros(size, visible)
        mask[:, -size:].fill_(float("-inf")).triu_(1)
        out[:, start:stop] = functional.scaled_dot_product_attention(
            q[None, :, start:stop],
            k[None, :, :visible],
            v[None, :, :visible],
            attn_mask=mask,
            enable_gqa=True,
        )[0]
    return out


def by_runs(*, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` in short runs of queries, so that scores stay in cache.

    A run sees no key behind its own last one, so that only the corner of its scores is masked.
    """
    heads, tokens, head_dim = q.shape
    kv_heads, length, _ = k.shape
    grouped = q.view(kv_heads, -1, tokens, head_dim)
    out = torch.empty_like(grouped)
    run = max(1, min(QUERY_RUN, MAX_SCORES // length))
    later = torch.full((run, run), float("-inf")).triu_(1)
    for start in range(0, tokens, run):
        stop = min(start + run, tokens)
        size, visible = stop - start, length - tokens + stop
        rows = grouped[:, :, start:stop].reshape(kv_heads, -1, head_dim)
        scores = (rows @ k[:, :visible].mT).to(torch.float32).mul_(head_dim**-0.5)
        scores.view(kv_heads, -1, size, visible)[..., -size:] += later[:size, :size]
        mixed = scores.softmax(-1).to(q.dtype) @ v[:, :visible]
        out[:, :, start:stop] = mixed.view(kv_heads, -1, size, head_dim)
    return out.view(heads, tokens, head_dim)


def attention_step(*, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let one token attend to the S tokens that end with it.

    Args:
        q: [heads, head_dim].
        k, v: [kv_heads, S, head_dim] of q's dtype.

    Returns:
        [heads, head_dim]. The query heads of a KV head stand where a block's tokens would: no mask,
        because every key is visible to all of them.
    """
    grouped = q.view(1, k.shape[0], -1, q.shape[-1])
    out = functional.scaled_dot_product_attention(grouped, k.unsqueeze(0), v.unsqueeze(0))
    return out.view(q.shape)
