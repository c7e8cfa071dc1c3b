"""Attention over a KV cache in pages: the pages put together, then attention written out."""

from qcn_kernels.attention.reference import attention
from torch import Tensor


def paged_attention(
    q: Tensor, *, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, length: Tensor
) -> Tensor:
    """Let T new tokens attend to the S tokens that end with them.

    Args:
        q: [T, heads, head_dim].
        k_pages, v_pages: [pages, kv_heads, page, head_dim], of every sequence, in any order. The T
            tokens' own keys and values are there already.
        page_table: [n] int32, this sequence's pages in order, n · page ≥ S.
        length: [1] int32, S.

    Returns:
        [T, heads, head_dim].
    """
    tokens = int(length)

    def gathered(pages: Tensor) -> Tensor:  # -> [kv_heads, S, head_dim]
        return pages[page_table.long()].transpose(0, 1).flatten(1, 2)[:, :tokens]

    out = attention(q=q.transpose(0, 1), k=gathered(k_pages), v=gathered(v_pages))
    return out.transpose(0, 1)
