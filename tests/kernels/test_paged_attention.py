"""The reference of attention over pages against attention over one tensor."""

import torch
from qcn_kernels.attention.reference import attention
from qcn_kernels.paged_attention import PagedKv, paged_attention_decode, paged_attention_prefill
from torch import Tensor


def test_pages_are_read_in_the_order_of_the_table() -> None:
    """Of a pool of seven pages of 8 tokens three belong to the sequence; the rest hold NaN."""
    length, table = 21, torch.tensor([5, 0, 3], dtype=torch.int32)
    k, v = torch.randn(2, 24, 12), torch.randn(2, 24, 12)
    k[:, length:] = v[:, length:] = torch.nan

    def pool(tensor: Tensor) -> Tensor:
        pages = torch.full((7, 2, 8, 12), torch.nan)
        pages[table.long()] = tensor.view(2, 3, 8, 12).transpose(0, 1)
        return pages

    q = torch.randn(5, 6, 12)
    want = attention(q=q.transpose(0, 1), k=k[:, :length], v=v[:, :length]).transpose(0, 1)
    tokens = torch.tensor([length], dtype=torch.int32)
    kv = PagedKv(pool(k), pool(v), table, tokens, max_length=24)
    for launcher in (paged_attention_prefill, paged_attention_decode):
        torch.testing.assert_close(launcher(q, kv), want)
