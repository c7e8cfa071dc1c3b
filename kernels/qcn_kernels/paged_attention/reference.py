"""Attention over a KV cache in pages: the pages put together, then attention written out."""

import torch
from torch import Tensor

from qcn_kernels.attention.reference import attention
from qcn_kernels.paged_attention.pages import PagedKv


def paged_attention(q: Tensor, kv: PagedKv) -> Tensor:
    """Let T new tokens attend to the S tokens that end with them.

    Args:
        q: [T, heads, head_dim].
        kv: of the S tokens.

    Returns:
        [T, heads, head_dim].
    """
    length = int(kv.length)

    def gathered(pages: Tensor) -> Tensor:  # -> [kv_heads, S, head_dim]
        return pages[kv.table.long()].transpose(0, 1).flatten(1, 2)[:, :length]

    out = attention(q=q.transpose(0, 1), k=gathered(kv.k_pages), v=gathered(kv.v_pages))
    return out.transpose(0, 1)


def append(kv: PagedKv, *, k: Tensor, v: Tensor) -> None:
    """Write T new tokens' keys and values [T, kv_heads, head_dim] where `kv` ends."""
    end, page = int(kv.length), kv.k_pages.shape[2]
    positions = torch.arange(end - len(k), end, device=k.device)
    pages = kv.table[positions // page].long()
    kv.k_pages[pages, :, positions % page] = k
    kv.v_pages[pages, :, positions % page] = v
