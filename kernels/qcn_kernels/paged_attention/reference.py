"""Attention over a KV cache in pages: the pages put together, then attention written out."""

import torch
from torch import Tensor

from qcn_kernels.attention.reference import attention
from qcn_kernels.fp8.reference import LARGEST, SMALLEST
from qcn_kernels.paged_attention.pages import E4M3_ROWS, PagedKv, row_elements, scale_at


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
        rows = pages[kv.table.long()].transpose(0, 1).flatten(1, 2)[:, :length]
        return values_of(rows, q.shape[2]).to(q.dtype) if rows.dtype == E4M3_ROWS else rows

    out = attention(q=q.transpose(0, 1), k=gathered(kv.k_pages), v=gathered(kv.v_pages))
    return out.transpose(0, 1)


def append(kv: PagedKv, *, k: Tensor, v: Tensor) -> None:
    """Write T new tokens' keys and values [T, kv_heads, head_dim] where `kv` ends."""
    end, page = int(kv.length), kv.k_pages.shape[2]
    positions = torch.arange(end - len(k), end, device=k.device)
    pages = kv.table[positions // page].long()
    for there, x in ((kv.k_pages, k), (kv.v_pages, v)):
        there[pages, :, positions % page] = rows_of(x) if there.dtype == E4M3_ROWS else x


def rows_of(x: Tensor) -> Tensor:
    """Return vectors [..., head_dim] as rows of e4m3: the largest of each becomes 448."""
    head_dim = x.shape[-1]
    x = x.to(torch.float32)
    peaks = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST)
    factors = torch.full_like(peaks, LARGEST) / peaks  # a number over a tensor is rounded twice
    rows = x.new_zeros(*x.shape[:-1], row_elements(head_dim, E4M3_ROWS), dtype=E4M3_ROWS)
    rows[..., :head_dim] = (x * factors).to(torch.float8_e4m3fn).view(E4M3_ROWS)
    at = scale_at(head_dim)
    rows[..., at : at + 4] = (peaks / LARGEST).view(E4M3_ROWS)
    return rows


def values_of(rows: Tensor, head_dim: int) -> Tensor:
    """Return the vectors [..., head_dim] of rows of e4m3, fp32."""
    at = scale_at(head_dim)
    scales = rows[..., at : at + 4].contiguous().view(torch.float32)
    values = rows[..., :head_dim].contiguous().view(torch.float8_e4m3fn)
    return values.to(torch.float32) * scales
