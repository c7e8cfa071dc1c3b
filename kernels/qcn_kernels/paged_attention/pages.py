"""The keys and values of one sequence, in pages of a pool that all sequences share."""

from dataclasses import dataclass

import torch
from torch import Tensor

E4M3_ROWS = torch.uint8
"""Dtype of pages whose rows are e4m3 values and, behind them, the fp32 number they are multiplied
by: a scale for each key and each value, so that a model needs no calibration."""
ALIGNED = 16
"""Bytes: where a row's scale begins, and the next row, as a tensor descriptor wants it."""


def scale_at(head_dim: int) -> int:
    """Where a row of e4m3 has its scale, in bytes."""
    return -(-head_dim // ALIGNED) * ALIGNED


def row_elements(head_dim: int, dtype: torch.dtype) -> int:
    """Elements of a key's or a value's row in pages of this dtype."""
    return scale_at(head_dim) + ALIGNED if dtype == E4M3_ROWS else head_dim


@dataclass(frozen=True, slots=True)
class PagedKv:
    """Where one layer's keys and values of a sequence lie."""

    k_pages: Tensor  # [pages, kv_heads, page, row], a row is that of `row_elements`
    v_pages: Tensor
    table: Tensor  # [n] int32, the sequence's pages in order
    length: Tensor  # [1] int32, tokens, the newest included; on the device
    max_length: int  # a bound of `length` that the host knows, at most n · page
