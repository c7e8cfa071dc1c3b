"""The keys and values of one sequence, in pages of a pool that all sequences share."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedKv:
    """Where one layer's keys and values of a sequence lie."""

    k_pages: Tensor  # [pages, kv_heads, page, head_dim]
    v_pages: Tensor
    table: Tensor  # [n] int32, the sequence's pages in order
    length: Tensor  # [1] int32, tokens, the newest included; on the device
    max_length: int  # a bound of `length` that the host knows, at most n · page
