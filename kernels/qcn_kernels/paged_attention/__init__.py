"""Attention over a KV cache in pages. See README.md.

`choice.py` says what runs; Triton is imported where its kernel does.
"""

from torch import Tensor

from qcn_kernels.choice import uses_triton
from qcn_kernels.paged_attention import reference
from qcn_kernels.paged_attention.pages import E4M3_ROWS, PagedKv, row_elements

__all__ = [
    "E4M3_ROWS",
    "PagedKv",
    "append",
    "paged_attention_decode",
    "paged_attention_prefill",
    "row_elements",
]


def append(kv: PagedKv, *, k: Tensor, v: Tensor) -> None:
    """Write T tokens' keys and values where those of `kv` end.

    Args:
        kv: of the S tokens that end with these.
        k, v: [T, kv_heads, head_dim] in the pages' dtype, or any where that is `E4M3_ROWS`; the
            last dimension without gaps.
    """
    if uses_triton(k):
        from qcn_kernels.paged_attention import triton

        triton.append(kv, k=k, v=v)
    else:
        reference.append(kv, k=k, v=v)


def paged_attention_prefill(q: Tensor, kv: PagedKv) -> Tensor:
    """Let a block of T tokens attend to the S tokens that end with them.

    Args:
        q: [T, heads, head_dim].
        kv: of the S tokens; the T tokens' own are there already.

    Returns:
        [T, heads, head_dim] in q's dtype.
    """
    if uses_triton(q):
        from qcn_kernels.paged_attention import triton

        return triton.paged_attention_prefill(q, kv)
    return reference.paged_attention(q, kv)


def paged_attention_decode(q: Tensor, kv: PagedKv) -> Tensor:
    """The same for one token, or for a few that are verified together."""
    if uses_triton(q):
        from qcn_kernels.paged_attention import triton

        return triton.paged_attention_decode(q, kv)
    return reference.paged_attention(q, kv)
